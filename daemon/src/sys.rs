// SPDX-License-Identifier: MIT OR Apache-2.0

//! The system calls no crate wraps. The only unsafe code of the daemon is here.
#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_long};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `setsockopt(IPPROTO_TCP)`: longest wait before a segment is sent again. Linux 6.15.
const TCP_RTO_MAX_MS: c_int = 44;
/// `clone3` flag: the child starts with default signal handlers. The constant of `libc` is too short.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// `unshare` flag. Not in `libc` for this target.
const CLONE_NEWTIME: c_int = 0x80;

/// `clone3` argument, as far as we use it.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Bounds the time TCP waits before it sends a lost segment again, so that a link that was cut for
/// seconds goes on at once when it heals. An older kernel answers `ENOPROTOOPT`.
///
/// # Errors
/// What `setsockopt` says.
pub fn set_rto_max(socket: impl AsFd, ms: u32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `ms`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const ms).cast(),
            length,
        )
    };
    check(c_long::from(result)).map(drop)
}

/// Groups a user can be in, at most: `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65_536;

/// The supplementary groups of the one who made the connection.
///
/// # Errors
/// What `getsockopt` says.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let bytes = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(bytes).map_err(io::Error::other)?;
        // SAFETY: the pointer and the length describe the vector, which outlives the call.
        let result = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).map_err(io::Error::other)? / size_of::<u32>();
        match check(c_long::from(result)) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It says how much room it needs.
            Err(e)
                if e.raw_os_error() == Some(libc::ERANGE)
                    && (groups.len() + 1..=MAX_GROUPS).contains(&count) =>
            {
                groups.resize(count, 0);
            }
            Err(e) => return Err(e),
        }
    }
}

/// The parts of the processor's state that the kernel saves for programs: XCR0, 0 if there is none.
pub fn xfeatures() -> u64 {
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 is there wherever the instruction is.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    if std::arch::is_x86_feature_detected!("xsave") {
        // SAFETY: the processor has the instruction, and the kernel lets programs use it.
        unsafe { xcr0() }
    } else {
        0
    }
}

/// Starts the program in `exe` (a memfd) as process `pid`, with `device` as its only file, number
/// 0, and `argument` as its only argument, in a session and a time name space of its own, whose
/// offsets are `clocks` (in the form of `/proc/PID/timens_offsets`). It is our child and announces
/// its end with SIGCHLD.
///
/// # Errors
/// What `clone3` says: `EEXIST` when the number is taken, `EPERM` without
/// `CAP_CHECKPOINT_RESTORE`. That the program did not start shows in its exit status, 127.
pub fn spawn_as(
    pid: u32,
    exe: BorrowedFd<'_>,
    device: BorrowedFd<'_>,
    name: &str,
    argument: &str,
    clocks: &str,
) -> io::Result<()> {
    // Everything the child needs is made here: between clone and exec it may only do system calls.
    let name = CString::new(name)?;
    let argument = CString::new(argument)?;
    let argv = [name.as_ptr(), argument.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let set_tid = [pid.cast_signed()];
    let arguments = CloneArgs {
        flags: u64::from(libc::CLONE_VFORK.cast_unsigned()) | CLONE_CLEAR_SIGHAND,
        exit_signal: u64::from(libc::SIGCHLD.cast_unsigned()),
        set_tid: set_tid.as_ptr() as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM the child has a copy of our memory, so this is fork: it returns
    // twice on two copies of this stack. All pointers in `arguments` are valid for the call. The
    // child of a process with threads may only do what is safe in a signal handler: `become_stub`
    // does bare system calls and never returns.
    unsafe {
        let result = libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArgs>(),
        );
        if result == 0 {
            become_stub(
                exe.as_raw_fd(),
                device.as_raw_fd(),
                argv.as_ptr(),
                envp.as_ptr(),
                clocks.as_bytes(),
            );
        }
        check(result).map(drop)
    }
}

/// What the child of [`spawn_as`] does until it is another program.
///
/// # Safety
/// Only in a fresh child; the arrays end with null and hold strings that end with zero.
unsafe fn become_stub(
    exe: RawFd,
    device: RawFd,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    clocks: &[u8],
) -> ! {
    let nothing: u64 = 0;
    // SAFETY: bare system calls on numbers and on memory the caller vouches for. Every other file
    // is closed by exec: close_range only marks, so that `exe` lives until then.
    unsafe {
        libc::syscall(libc::SYS_setsid);
        // The name space is entered by exec, and takes its offsets until then.
        let timed = libc::syscall(libc::SYS_unshare, CLONE_NEWTIME) == 0;
        let offsets = libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/timens_offsets".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        let timed = timed
            && libc::syscall(libc::SYS_write, offsets, clocks.as_ptr(), clocks.len())
                == clocks.len().cast_signed() as c_long;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const nothing,
            0,
            size_of::<u64>(),
        );
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
        if timed
            && libc::syscall(libc::SYS_dup2, device, 0) == 0
            && libc::syscall(
                libc::SYS_close_range,
                1,
                u32::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            ) == 0
        {
            libc::syscall(
                libc::SYS_execveat,
                exe,
                c"".as_ptr(),
                argv,
                envp,
                libc::AT_EMPTY_PATH,
            );
        }
        loop {
            libc::syscall(libc::SYS_exit_group, 127);
        }
    }
}

/// Takes the files that the service manager has opened for this process, with their names. Each can be taken once: a
/// second call finds none.
///
/// # Errors
/// When its environment names files that are not there, or more names than files.
pub fn inherited() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let named = sd_notify::listen_fds_with_names()?;
    // SAFETY: the environment says, for this very process, that these numbers were opened for it to own; each of them
    // was open a moment ago, when it was made to close on exec. `TAKEN` sees to it that nobody gets one twice.
    let own = |(fd, name)| (unsafe { OwnedFd::from_raw_fd(fd) }, name);
    Ok(named.map(own).collect())
}

/// Another file number for the file behind `fd`, as the module takes it from a request.
#[cfg(test)]
pub(crate) fn duplicate(fd: u32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC only looks at the table of files; the number it returns is new and
    // nobody else's.
    unsafe {
        let fd = check(c_long::from(libc::fcntl(
            fd.cast_signed(),
            libc::F_DUPFD_CLOEXEC,
            3,
        )))?;
        Ok(OwnedFd::from_raw_fd(
            RawFd::try_from(fd).map_err(io::Error::other)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_gets_the_number_asked_for_and_the_argument() {
        use std::io::Read;
        // Any static program that ignores its argument would do; /bin/sh is not one of a memfd, so
        // the test uses the stub itself: without the device it ends with status 1.
        let exe = crate::stub::image().unwrap();
        let device = std::fs::File::open("/dev/null").unwrap();
        let max: u32 = std::fs::read_to_string("/proc/sys/kernel/pid_max")
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let pid = max - 7;
        match spawn_as(
            pid,
            exe.as_fd(),
            device.as_fd(),
            "stub",
            "12",
            "monotonic 0 0\n",
        ) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: not allowed to choose a process id here");
                return;
            }
            r => r.unwrap(),
        };
        let mut comm = String::new();
        // It may be gone already as a zombie; its number is still there.
        std::fs::File::open(format!("/proc/{pid}/stat"))
            .unwrap()
            .read_to_string(&mut comm)
            .unwrap();
        assert!(comm.starts_with(&format!("{pid} ")));
        assert!(
            spawn_as(
                pid,
                exe.as_fd(),
                device.as_fd(),
                "stub",
                "12",
                "monotonic 0 0\n"
            )
            .unwrap_err()
            .raw_os_error()
                == Some(libc::EEXIST)
        );
        let status =
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid.cast_signed()), None).unwrap();
        assert!(
            matches!(status, nix::sys::wait::WaitStatus::Exited(_, 1)),
            "{status:?}"
        );
    }
}
