// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The image of a process: a stream of records, each a [`Head`] and a body, in any order but
//! [`Kind::Process`] first and [`Kind::End`] last.
//!
//! The fixed structures are what the kernel's side fills and reads (kmod/src/shim/task.h): plain
//! numbers without padding, little endian because x86-64 is.

use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[cfg(target_endian = "big")]
compile_error!("the image's numbers are little endian");

/// Version of the records.
pub const VERSION: u32 = 1;
/// Most signals that wait for one process or thread.
pub const MAX_SIGNALS: usize = 16_384;
/// Most threads of a process.
pub const MAX_THREADS: usize = 512;
/// Most mappings of a process.
pub const MAX_MAPPINGS: usize = 16_384;
/// Longest path.
pub const MAX_PATH_BYTES: usize = 4096;
/// Largest extended state of a thread.
pub const MAX_XSTATE_BYTES: usize = 12 * 1024;
/// Largest body of one record.
pub const MAX_RECORD_BYTES: usize = 1 << 20;

/// Start of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Head {
    /// A [`Kind`].
    pub kind: u32,
    /// Bytes of the body. The next record starts at the next multiple of 8.
    pub len: u32,
}

/// Kinds of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// [`Process`].
    Process = 1,
    /// Supplementary groups: `u32` each.
    Groups = 2,
    /// Auxiliary vector: `u64` each.
    Auxv = 3,
    /// Path of the program, and [`Same`] first.
    Exe = 4,
    /// Path of the working directory.
    Cwd = 5,
    /// [`Mapping`], then the path of its file.
    Mapping = 6,
    /// [`Thread`], then its extended state.
    Thread = 7,
    /// 64 of [`Action`].
    Actions = 8,
    /// Open files: records of their own, see `wire::file`.
    Files = 9,
    /// Address (`u64`), then a page that is there from the start.
    Page = 10,
    /// Nothing: the image is whole.
    End = 11,
    /// Signals that wait: for whom (`u32`, 0 for the process) and zero (`u32`), then [`SigInfo`]
    /// each, oldest first.
    Signals = 12,
}

impl Kind {
    /// The kind with this number, if there is one.
    pub fn from_u32(n: u32) -> Option<Self> {
        Some(match n {
            1 => Kind::Process,
            2 => Kind::Groups,
            3 => Kind::Auxv,
            4 => Kind::Exe,
            5 => Kind::Cwd,
            6 => Kind::Mapping,
            7 => Kind::Thread,
            8 => Kind::Actions,
            9 => Kind::Files,
            10 => Kind::Page,
            11 => Kind::End,
            12 => Kind::Signals,
            _ => return None,
        })
    }
}

/// Credentials; struct ssi_creds.
#[derive(
    Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Creds {
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub fsuid: u32,
    pub gid: u32,
    pub egid: u32,
    pub sgid: u32,
    pub fsgid: u32,
    pub cap_inheritable: u64,
    pub cap_permitted: u64,
    pub cap_effective: u64,
    pub cap_bset: u64,
    pub cap_ambient: u64,
    pub securebits: u32,
    pub no_new_privs: u32,
    pub ngroups: u32,
    pub pad: u32,
}
const _: () = assert!(size_of::<Creds>() == 88);

/// One signal; struct ssi_siginfo.
#[derive(
    Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct SigInfo {
    pub signo: i32,
    pub code: i32,
    pub err: i32,
    pub pid: i32,
    pub uid: u32,
    pub thread_directed: u32,
    pub value: u64,
}
const _: () = assert!(size_of::<SigInfo>() == 32);

impl SigInfo {
    /// Whether it may wait for somebody: SIGKILL and SIGSTOP do not, nor is there a signal 0 or 65.
    pub fn is_sound(&self) -> bool {
        matches!(self.signo, 1..=64) && self.signo != 9 && self.signo != 19
    }

    /// As system calls have it: siginfo_t.
    pub fn to_user(&self) -> [u8; 128] {
        let mut u = [0; 128];
        let head = [
            self.signo,
            self.err,
            self.code,
            0,
            self.pid,
            self.uid as i32,
        ];
        let fields = head.iter().flat_map(|v| v.to_le_bytes());
        for (to, from) in u.iter_mut().zip(fields.chain(self.value.to_le_bytes())) {
            *to = from;
        }
        u
    }
}

/// What the threads of a process share; struct ssi_process.
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct ProcessState {
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start,
    /// arg_end, env_start, env_end.
    pub mm: [u64; 11],
    pub rlim: [[u64; 2]; 16],
    pub umask: u32,
    pub personality: u32,
    pub dumpable: u32,
    pub exit_signal: u32,
    pub nice: i32,
    pub oom_score_adj: i32,
    /// Its monotonic clock when it was captured.
    pub monotonic_ns: u64,
    /// Its boot-time clock when it was captured.
    pub boottime_ns: u64,
}
const _: () = assert!(size_of::<ProcessState>() == 384);

/// Body of [`Kind::Process`].
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Process {
    pub version: u32,
    pub pid: u32,
    pub threads: u32,
    pub reserved: u32,
    pub state: ProcessState,
    pub creds: Creds,
    /// Remaining time of its real-time interval timer, and its interval, ns.
    pub itimer_real_ns: [u64; 2],
}
const _: () = assert!(size_of::<Process>() == 504);

/// One thread; struct ssi_thread. `regs` is `struct user_regs_struct`.
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct ThreadState {
    pub regs: [u64; 27],
    pub blocked: u64,
    pub saved: u64,
    pub saved_set: u32,
    pub rseq_version: u32,
    pub robust: u64,
    pub ctid: u64,
    pub sas_sp: u64,
    pub sas_size: u64,
    pub rseq_ptr: u64,
    pub restart: [u64; 6],
    /// 0 none, 1 nanosleep, 2 poll, 3 futex. Times in `restart` are the process's own clock's.
    pub restart_kind: u32,
    pub sas_flags: u32,
    pub rseq_len: u32,
    pub rseq_sig: u32,
    /// What the kernel last wrote to its area of restartable sequences.
    pub rseq_cpu: u32,
    pub rseq_mm_cid: u32,
    pub rseq_node: u32,
    pub pad: u32,
    pub comm: [u8; 16],
}
const _: () = assert!(size_of::<ThreadState>() == 376);

/// Index of a register in [`ThreadState::regs`].
pub mod reg {
    #![allow(missing_docs)]
    pub const R11: usize = 6;
    pub const AX: usize = 10;
    pub const CX: usize = 11;
    pub const ORIG_AX: usize = 15;
    pub const IP: usize = 16;
    pub const FLAGS: usize = 18;
    pub const SP: usize = 19;
    pub const FS_BASE: usize = 21;
    pub const GS_BASE: usize = 22;
}

/// Body of [`Kind::Thread`] before the extended state.
#[derive(Clone, Copy, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Thread {
    pub tid: u32,
    pub reserved: u32,
    pub state: ThreadState,
}
const _: () = assert!(size_of::<Thread>() == 384);

impl Thread {
    /// Whether its registers may be given to a thread of ours, as ptrace would decide.
    /// `task_size` is the first address user mode cannot have.
    pub fn is_sound(&self, task_size: u64) -> bool {
        let s = &self.state;
        let orig = s.regs[reg::ORIG_AX] as i64;
        s.regs[reg::IP] < task_size
            && s.regs[reg::FS_BASE] < task_size
            && s.regs[reg::GS_BASE] < task_size
            && (-1..=4096).contains(&orig)
            && s.restart_kind <= 3
            && s.rseq_ptr < task_size
            && s.robust < task_size
            && s.ctid < task_size
            && s.rseq_version <= 2
            && s.rseq_len <= 4096
            && match s.restart_kind {
                1 => s.restart[2] < task_size,
                2 => s.restart[0] < task_size && s.restart[1] <= 1 << 20,
                3 => s.restart[0] < task_size && s.restart[5] < task_size,
                _ => true,
            }
    }
}

/// One signal disposition; struct ssi_action.
#[derive(
    Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
#[allow(missing_docs)]
pub struct Action {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// How a mapping comes to be on the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Way {
    /// Anonymous and never touched.
    Fresh = 0,
    /// Anonymous there; pages follow.
    Paged = 1,
    /// Anonymous; its pages are in the image.
    Eager = 2,
    /// The same file is there; no page of its own.
    File = 3,
    /// The same file is there; pages of its own follow.
    FilePaged = 4,
    /// Mapped by the kernel itself (vdso and its data): moved to this address.
    Kernel = 5,
}

impl Way {
    /// The way with this number, if there is one.
    pub fn from_u32(n: u32) -> Option<Self> {
        Some(match n {
            0 => Way::Fresh,
            1 => Way::Paged,
            2 => Way::Eager,
            3 => Way::File,
            4 => Way::FilePaged,
            5 => Way::Kernel,
            _ => return None,
        })
    }
}

/// Body of [`Kind::Mapping`] before the path.
#[derive(
    Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address after it.
    pub end: u64,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// A [`Way`].
    pub way: u32,
    /// `PROT_` bits.
    pub prot: u32,
    /// Bits of [`Mapping::SHARED`] and so on.
    pub flags: u32,
    /// Order of a [`Way::Kernel`] mapping: 1 vdso, 2 its data areas.
    pub special: u32,
}
const _: () = assert!(size_of::<Mapping>() == 40);

impl Mapping {
    /// In [`Mapping::flags`]: shared.
    pub const SHARED: u32 = 1;
    /// In [`Mapping::flags`]: grows down.
    pub const GROWSDOWN: u32 = 2;
    /// In [`Mapping::flags`]: not counted against overcommit.
    pub const NORESERVE: u32 = 4;

    /// Whether its numbers make a mapping that user mode may have.
    pub fn is_sound(&self, task_size: u64) -> bool {
        self.start < self.end
            && self.end <= task_size
            && (self.start | self.end | self.offset) & 0xfff == 0
            && Way::from_u32(self.way).is_some()
            && self.offset.checked_add(self.end - self.start).is_some()
    }
}

/// The image does not hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// A record is cut short or longer than it may be.
    Length,
    /// An unknown kind of record.
    Kind,
    /// A number that means nothing, or a record that is missing or out of place.
    Value,
}

/// Bytes of head, body and padding of a record with a body of `len` bytes.
pub const fn record_bytes(len: usize) -> usize {
    size_of::<Head>() + ((len + 7) & !7)
}

/// Goes through the records of an image.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Starts at the first record.
    pub fn new(image: &'a [u8]) -> Self {
        Self { rest: image }
    }

    /// The next record, `None` after the last byte.
    ///
    /// # Errors
    /// [`Error::Length`], [`Error::Kind`].
    pub fn next_record(&mut self) -> Result<Option<(Kind, &'a [u8])>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (h, rest) = Head::read_from_prefix(self.rest).map_err(|_| Error::Length)?;
        let len = h.len as usize;
        if len > MAX_RECORD_BYTES {
            return Err(Error::Length);
        }
        let body = rest.get(..len).ok_or(Error::Length)?;
        self.rest = rest.get((len + 7) & !7..).ok_or(Error::Length)?;
        Ok(Some((Kind::from_u32(h.kind).ok_or(Error::Kind)?, body)))
    }
}

/// The fixed part `T` of a body, copied (bodies are not aligned), and what follows it.
///
/// # Errors
/// [`Error::Length`].
pub fn fixed<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Error> {
    T::read_from_prefix(body).map_err(|_| Error::Length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn put(v: &mut Vec<u8>, kind: Kind, body: &[u8]) {
        v.extend_from_slice(
            Head {
                kind: kind as u32,
                len: body.len() as u32,
            }
            .as_bytes(),
        );
        v.extend_from_slice(body);
        v.resize((v.len() + 7) & !7, 0);
    }

    #[test]
    fn records_come_back_in_order() {
        let mut v = Vec::new();
        put(&mut v, Kind::Process, Process::default().as_bytes());
        put(&mut v, Kind::Cwd, b"/tmp/x");
        put(&mut v, Kind::End, b"");
        assert_eq!(
            v.len(),
            record_bytes(504) + record_bytes(6) + record_bytes(0)
        );
        let mut r = Records::new(&v);
        assert_eq!(r.next_record().unwrap().unwrap().0, Kind::Process);
        assert_eq!(r.next_record(), Ok(Some((Kind::Cwd, &b"/tmp/x"[..]))));
        assert_eq!(r.next_record(), Ok(Some((Kind::End, &b""[..]))));
        assert_eq!(r.next_record(), Ok(None));
    }

    #[test]
    fn an_image_cut_inside_a_record_is_refused() {
        let mut v = Vec::new();
        put(&mut v, Kind::Cwd, b"/a");
        for n in 1..v.len() {
            assert!(Records::new(&v[..n]).next_record().is_err());
        }
    }

    #[test]
    fn registers_that_ptrace_would_refuse_are_refused() {
        let size = 0x7fff_ffff_f000;
        let mut t = Thread::default();
        t.state.regs[reg::ORIG_AX] = u64::MAX;
        assert!(t.is_sound(size));
        for (i, bad) in [
            (reg::IP, 1 << 63),
            (reg::FS_BASE, size),
            (reg::GS_BASE, 1 << 47),
            (reg::ORIG_AX, 1 << 40),
        ] {
            let mut b = t;
            b.state.regs[i] = bad;
            assert!(!b.is_sound(size), "{i}");
        }
        t.state.restart_kind = 3;
        t.state.restart[0] = size;
        assert!(!t.is_sound(size));
    }

    #[test]
    fn mappings_that_wrap_or_leave_user_mode_are_refused() {
        let size = 0x7fff_ffff_f000;
        let m = Mapping {
            start: 0x1000,
            end: 0x3000,
            ..Mapping::default()
        };
        assert!(m.is_sound(size));
        assert!(!Mapping { end: 0x1000, ..m }.is_sound(size));
        assert!(!Mapping { start: 0x1001, ..m }.is_sound(size));
        assert!(!Mapping {
            end: size + 0x1000,
            ..m
        }
        .is_sound(size));
        assert!(!Mapping {
            offset: !0xfff,
            ..m
        }
        .is_sound(size));
        assert!(!Mapping { way: 9, ..m }.is_sound(size));
    }
}
