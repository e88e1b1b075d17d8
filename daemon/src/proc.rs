// SPDX-License-Identifier: MIT OR Apache-2.0

//! What /proc of this node says about a process. A process may end at any time: then there is
//! simply nothing.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ssi::id::{MAX_NODE, NodeId, PID_BITS};
use ssi::uapi::FileId;

/// `PF_KTHREAD` in the flags of `/proc/PID/stat`.
const KERNEL_THREAD: u64 = 0x0020_0000;
/// What the kernel appends to the path of a file that has no name any more.
const DELETED: &[u8] = b" (deleted)";

/// A file that a process has mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// As the module names it.
    pub id: FileId,
    /// First mapping of it, `START-END`, as in `/proc/PID/map_files`.
    pub range: String,
}

/// A process of this node as `ps` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// Its threads.
    pub threads: u32,
}

/// What the kernel calls the first number it does not give to a process.
const PID_MAX: &str = "/proc/sys/kernel/pid_max";

/// Lets the kernel number the processes of every node. It comes with fewer numbers on small
/// machines, and always knows as many as a cluster has.
///
/// # Errors
/// What reading or writing the setting says.
pub fn allow_all_numbers() -> io::Result<()> {
    let numbers = (u32::from(MAX_NODE) + 1) << PID_BITS;
    let now: u32 = fs::read_to_string(PID_MAX)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    if now < numbers {
        fs::write(PID_MAX, numbers.to_string())?;
        tracing::info!("kernel.pid_max was {now}, is {numbers}");
    }
    Ok(())
}

/// Files this daemon may have open at least: every connection takes one, and without any left nothing can be
/// written to the disk.
const FILES: u64 = 65_536;

/// Lets this process have many files open.
///
/// # Errors
/// What the system says.
pub fn allow_many_files() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = most.max(FILES);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

fn directory(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// Whether this kernel has a process with this number.
pub fn exists(pid: u32) -> bool {
    pid != 0 && directory(pid).exists()
}

/// Whether every user id of the process is `uid`.
pub fn belongs_to(pid: u32, uid: u32) -> bool {
    uids(pid) == [uid; 4]
}

/// Its user ids: real, effective, saved, and that of the file system. None if it cannot be told.
pub fn uids(pid: u32) -> Vec<u32> {
    parse_uids(&status(pid))
}

/// As whom a process may act: its user ids, and that of root if it has capabilities. None if it cannot be told.
pub fn acts_as(pid: u32) -> Vec<u32> {
    parse_acts_as(&status(pid))
}

fn status(pid: u32) -> String {
    // The name of a process need not be text.
    let status = fs::read(directory(pid).join("status")).unwrap_or_default();
    String::from_utf8_lossy(&status).into_owned()
}

fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|l| l.strip_prefix(name))
}

fn parse_uids(status: &str) -> Vec<u32> {
    let ids = field(status, "Uid:").map(|ids| ids.split_whitespace().map(str::parse).collect());
    ids.and_then(Result::ok).unwrap_or_default()
}

fn parse_acts_as(status: &str) -> Vec<u32> {
    let mut ids = parse_uids(status);
    let has_none = |set: &str| set.trim().bytes().all(|b| b == b'0');
    if !ids.is_empty() && !ids.contains(&0) && !field(status, "CapPrm:").is_some_and(has_none) {
        ids.push(0);
    }
    ids
}

/// A process as it was at one moment: neither another that got its number since, nor what it became by executing
/// a program that lets it act as somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When it was started, in ticks since the boot.
    started: u64,
    /// See [`acts_as`].
    pub acts_as: Vec<u32>,
}

impl Mark {
    /// That process, if it is there.
    pub fn now(pid: u32) -> Option<Self> {
        let stat = fs::read(directory(pid).join("stat")).ok()?;
        Some(Self {
            started: parse_started(&stat)?,
            acts_as: acts_as(pid),
        })
    }
}

/// Field 22 in `proc_pid_stat(5)`.
fn parse_started(stat: &[u8]) -> Option<u64> {
    let (_, fields) = parse_fields(stat)?;
    fields.get(19)?.parse().ok()
}

/// The name of a process.
pub fn comm(pid: u32) -> String {
    let text = fs::read(directory(pid).join("comm")).unwrap_or_default();
    String::from_utf8_lossy(text.strip_suffix(b"\n").unwrap_or(&text)).into_owned()
}

/// Its working directory, if that still has a name.
pub fn working_directory(pid: u32) -> Option<Vec<u8>> {
    let path = fs::read_link(directory(pid).join("cwd"))
        .ok()?
        .into_os_string()
        .into_vec();
    (path.starts_with(b"/") && !path.ends_with(DELETED)).then_some(path)
}

/// The regular files a process has mapped, each once.
///
/// # Errors
/// When its mappings cannot be read.
pub fn mapped_files(pid: u32) -> io::Result<Vec<Mapped>> {
    Ok(parse_maps(&fs::read(directory(pid).join("maps"))?))
}

/// The path under which the file mapped at `range` can be opened, whatever its name is now.
pub fn mapping(pid: u32, range: &str) -> PathBuf {
    directory(pid).join("map_files").join(range)
}

/// The name of a file behind a link of /proc, if it has one.
pub fn name_of(link: &Path) -> Option<Vec<u8>> {
    let path = fs::read_link(link).ok()?.into_os_string().into_vec();
    (path.starts_with(b"/") && !path.ends_with(DELETED)).then_some(path)
}

/// A path from bytes.
pub fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

fn parse_maps(text: &[u8]) -> Vec<Mapped> {
    let mut files: Vec<Mapped> = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        if let Some(m) = parse_mapping(line)
            && !files.iter().any(|f| f.id == m.id)
        {
            files.push(m);
        }
    }
    files
}

/// A line of `/proc/PID/maps`, if it is about a file with a name.
fn parse_mapping(line: &[u8]) -> Option<Mapped> {
    let mut fields = line.split(|b| *b == b' ').filter(|f| !f.is_empty());
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let (range, _, _, device, inode) = (text()?, text()?, text()?, text()?, text()?);
    if !fields.next()?.starts_with(b"/") || line.ends_with(DELETED) {
        return None;
    }
    let (major, minor) = device.split_once(':')?;
    let ino: u64 = inode.parse().ok()?;
    let id = FileId {
        major: u32::from_str_radix(major, 16).ok()?.into(),
        minor: u32::from_str_radix(minor, 16).ok()?.into(),
        ino: ino.into(),
    };
    // Padded with zeros here, and not in the names of map_files.
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Mapped {
        id,
        range: format!("{:x}-{:x}", number(start)?, number(end)?),
    })
}

/// The user processes of this node that were created on it since it is one, guests not among them.
pub fn local_processes(own: NodeId) -> Vec<Local> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|e| {
            let pid = e.ok()?.file_name().to_str()?.parse().ok()?;
            if !own.allocates(pid) {
                return None;
            }
            parse_stat(&fs::read(directory(pid).join("stat")).ok()?)
        })
        .collect()
}

/// Where the name ends in `/proc/PID/stat`, and what is behind it, from the state on: field 3 in `proc_pid_stat(5)`.
fn parse_fields(stat: &[u8]) -> Option<(usize, Vec<&str>)> {
    // The name may hold anything, parentheses too: it ends at the last one.
    let close = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    Some((close, rest.split_whitespace().collect()))
}

/// `/proc/PID/stat` of a user process that has not ended.
fn parse_stat(stat: &[u8]) -> Option<Local> {
    let open = stat.iter().position(|b| *b == b'(')?;
    let (close, fields) = parse_fields(stat)?;
    let pid = std::str::from_utf8(stat.get(..open)?)
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let comm = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    // Flags are field 9, threads field 20.
    let ended = matches!(*fields.first()?, "Z" | "X");
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let threads = fields.get(17)?.parse().ok()?;
    (!ended && flags & KERNEL_THREAD == 0).then_some(Local { pid, comm, threads })
}

/// The clocks that count from the start of a machine, as one process sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_MONOTONIC`, in ns.
    pub monotonic_ns: i64,
    /// `CLOCK_BOOTTIME`, in ns.
    pub boottime_ns: i64,
}

impl Clocks {
    /// This machine's.
    pub fn now() -> Self {
        let read = |id| {
            nix::time::clock_gettime(id).map_or(0, |t| {
                t.tv_sec()
                    .saturating_mul(1_000_000_000)
                    .saturating_add(t.tv_nsec())
            })
        };
        Self {
            monotonic_ns: read(nix::time::ClockId::CLOCK_MONOTONIC),
            boottime_ns: read(nix::time::ClockId::CLOCK_BOOTTIME),
        }
    }

    /// What must be added to `base` to get these, in the form of `/proc/PID/timens_offsets`.
    pub fn offsets_from(&self, base: &Self) -> String {
        let line = |name, ns: i64| {
            format!(
                "{name} {} {}\n",
                ns.div_euclid(1_000_000_000),
                ns.rem_euclid(1_000_000_000)
            )
        };
        line(
            "monotonic",
            self.monotonic_ns.saturating_sub(base.monotonic_ns),
        ) + &line(
            "boottime",
            self.boottime_ns.saturating_sub(base.boottime_ns),
        )
    }
}

/// The clocks of a process of this node, which may be a guest with those of its home.
pub fn clocks_of(pid: u32) -> Clocks {
    let text = fs::read_to_string(format!("/proc/{pid}/timens_offsets")).unwrap_or_default();
    let mut clocks = Clocks::now();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(Ok(s)), Some(Ok(ns))) = (
            words.next(),
            words.next().map(str::parse::<i64>),
            words.next().map(str::parse::<i64>),
        ) else {
            continue;
        };
        let offset_ns = s.saturating_mul(1_000_000_000).saturating_add(ns);
        match name {
            "monotonic" => clocks.monotonic_ns = clocks.monotonic_ns.saturating_add(offset_ns),
            "boottime" => clocks.boottime_ns = clocks.boottime_ns.saturating_add(offset_ns),
            _ => {}
        }
    }
    clocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_capabilities_acts_as_root() {
        let status = |uids: &str, caps: &str| {
            format!("Name:\tx\nUid:\t{uids}\nGid:\t0 0 0 0\nCapInh:\t00000000000000ff\n{caps}")
        };
        let none = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n";
        let some = "CapPrm:\t0000000000200000\nCapEff:\t0000000000000000\n";
        let user = "1000\t1000\t1000\t1000";
        assert_eq!(parse_acts_as(&status(user, none)), [1000; 4]);
        assert_eq!(
            parse_acts_as(&status(user, some)),
            [1000, 1000, 1000, 1000, 0]
        );
        assert_eq!(
            parse_acts_as(&status(user, "")),
            [1000, 1000, 1000, 1000, 0]
        );
        assert_eq!(parse_acts_as(&status("0\t0\t0\t0", some)), [0; 4]);
        assert_eq!(parse_acts_as("Name:\tx\n"), [0; 0]);
    }

    #[test]
    fn a_number_is_not_a_process() {
        let own = std::process::id();
        let seen = Mark::now(own).unwrap();
        assert_eq!(Mark::now(own).as_ref(), Some(&seen));
        assert!(Mark::now(0).is_none());
        let line = |started: u64| {
            let before = (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
            let mut line = b"7 (a) R) \xff 1) S ".to_vec();
            line.extend(format!("{before} {started} 23 24\n").bytes());
            line
        };
        assert_eq!(parse_started(&line(4711)), Some(4711));
        assert_eq!(parse_started(b"7 (a) S 1 2"), None);
        // Another one has another start.
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .spawn()
            .unwrap();
        let other = Mark::now(child.id()).unwrap();
        assert!(other.started >= seen.started && other.acts_as == seen.acts_as);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Mark::now(child.id()), None);
    }

    #[test]
    fn offsets_are_written_as_the_kernel_reads_them() {
        let clocks = |s: i64| Clocks {
            monotonic_ns: s,
            boottime_ns: s + 5,
        };
        assert_eq!(
            clocks(2_500_000_001).offsets_from(&clocks(1_000_000_000)),
            "monotonic 1 500000001\nboottime 1 500000001\n"
        );
        assert_eq!(
            clocks(0).offsets_from(&clocks(1)),
            "monotonic -1 999999999\nboottime -1 999999999\n"
        );
    }
    use proptest::prelude::*;

    #[test]
    fn maps_are_understood() {
        let maps = b"\
55a0c4a00000-55a0c4a02000 r--p 00000000 fe:01 1234                       /usr/bin/with space\n\
55a0c4a02000-55a0c4a03000 r-xp 00002000 fe:01 1234                       /usr/bin/with space\n\
7f0000000000-7f0000001000 rw-s 00000000 00:05 99                         /dev/zero (deleted)\n\
7f0000001000-7f0000002000 rw-p 00000000 00:00 0 \n\
7f0000002000-7f0000003000 r--p 00000000 00:1b 77                         /lib/libc.so.6\n\
00400000-00401000 r--p 00000000 00:1b 78                                 /bin/busybox\n\
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]\n";
        let files = parse_maps(maps);
        assert_eq!(files.len(), 3);
        assert_eq!(files[0].range, "55a0c4a00000-55a0c4a02000");
        assert_eq!(
            (
                files[0].id.major.get(),
                files[0].id.minor.get(),
                files[0].id.ino.get()
            ),
            (0xfe, 1, 1234)
        );
        assert_eq!(files[1].id.minor.get(), 0x1b);
        // As its entry in map_files is called.
        assert_eq!(files[2].range, "400000-401000");
    }

    #[test]
    fn our_own_mappings_can_be_opened() {
        let own = std::process::id();
        let files = mapped_files(own).unwrap();
        assert!(!files.is_empty());
        let name = name_of(&mapping(own, &files[0].range)).unwrap();
        assert!(path(&name).exists());
        assert!(belongs_to(own, nix::unistd::getuid().as_raw()));
        assert!(!belongs_to(own, 12_345));
        assert!(!belongs_to(0, 0));
        assert!(working_directory(own).is_some());
    }

    #[test]
    fn stat_with_a_hostile_name() {
        let stat = b"262200 (a) R (b) S 1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 7 0 5 0 0";
        assert_eq!(
            parse_stat(stat),
            Some(Local {
                pid: 262_200,
                comm: "a) R (b".to_owned(),
                threads: 7
            })
        );
        let kernel = b"262201 (kworker) S 2 0 0 0 -1 69238880 0 0 0 0 0 0 0 0 20 0 1 0 5 0 0";
        assert_eq!(parse_stat(kernel), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse_maps(&bytes);
            parse_stat(&bytes);
        }
    }
}
