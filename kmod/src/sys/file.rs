// SPDX-License-Identifier: GPL-2.0-only

//! Open files: descriptors of a process, files of ours that stand for files open elsewhere, and
//! operations on real files for others.

use super::task::TaskRef;
use crate::files::guest::{self, Proxy};
use crate::files::home;
use crate::wire::file::{Attr, SetAttr};
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::{from_err_ptr, to_result};
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};
use kernel::types::Opaque;

type RawFile = bindings::file;
type RawIter = bindings::iov_iter;
type RawHead = bindings::wait_queue_head;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawFd {
    file: u64,
    fd: u32,
    cloexec: u32,
}
const _: () = assert!(size_of::<RawFd>() == 16);

/// What a file is; see shim/file.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct Facts {
    pub pos: u64,
    pub mode: u32,
    pub rdev_major: u32,
    pub rdev_minor: u32,
    pub uid: u32,
    pub gid: u32,
    pub flags: u32,
    pub can: u32,
    pub anonymous: u32,
    pub internal: u32,
    pub unlinked: u32,
    pub path_only: u32,
    pub plain_io: u32,
    pub locked: u32,
    pub reserved: [u32; 3],
}
const _: () = assert!(size_of::<Facts>() == 72);

/// Bytes of a `struct termios2`.
pub const TERMIOS2_BYTES: usize = 44;

#[allow(
    improper_ctypes,
    reason = "only pointers to them cross, and their layout is bindgen's"
)]
unsafe extern "C" {
    fn ssi_fds_get(t: *mut bindings::task_struct, v: *mut RawFd, max: c_int) -> c_int;
    fn ssi_fds_close();
    fn ssi_fd_take(cloexec: c_int) -> c_int;
    fn ssi_fd_drop(fd: c_int);
    fn ssi_fd_install(fd: c_int, f: *mut RawFile);
    fn ssi_fd_limit(limit: u64) -> u64;
    fn ssi_filp_get(f: *mut RawFile);
    fn ssi_filp_put(f: *mut RawFile);
    fn ssi_filp_put_now(f: *mut RawFile);
    fn ssi_filp_open(path: *const u8, flags: c_int) -> *mut RawFile;
    fn ssi_file_proxy(f: *mut RawFile) -> *mut c_void;
    fn ssi_file_look(
        t: *mut bindings::task_struct,
        f: *mut RawFile,
        r: *mut Facts,
        path: *mut u8,
        len: c_int,
    ) -> c_int;
    fn ssi_file_flags(f: *mut RawFile) -> u32;
    fn ssi_file_set_flags(f: *mut RawFile, value: u32, mask: u32) -> u32;
    fn ssi_proxy_new(
        name: *const u8,
        mode: u32,
        uid: u32,
        gid: u32,
        major: u32,
        minor: u32,
        flags: u32,
        can: u32,
        proxy: *mut c_void,
    ) -> *mut RawFile;
    fn ssi_poll_wake(head: *mut RawHead, events: u32);
    fn ssi_iter_count(i: *mut RawIter) -> usize;
    fn ssi_iter_from(to: *mut c_void, n: usize, i: *mut RawIter) -> usize;
    fn ssi_iter_to(from: *const c_void, n: usize, i: *mut RawIter) -> usize;
    fn ssi_iter_revert(i: *mut RawIter, n: usize);
    fn ssi_iter_writable(i: *const RawIter, n: usize) -> c_int;
    fn ssi_raise(sig: c_int);
    fn ssi_caller_tgid() -> u32;
    fn ssi_caller_read(to: *mut c_void, from: u64, n: usize) -> c_int;
    fn ssi_tty_signals() -> c_int;
    fn ssi_file_read(f: *mut RawFile, buf: *mut c_void, n: usize, pos: i64) -> isize;
    fn ssi_file_write(f: *mut RawFile, buf: *const c_void, n: usize, pos: i64, how: c_int)
        -> isize;
    fn ssi_file_seek(f: *mut RawFile, offset: i64, whence: c_int) -> i64;
    fn ssi_file_fsync(f: *mut RawFile, start: i64, end: i64, datasync: c_int) -> c_int;
    fn ssi_file_fallocate(f: *mut RawFile, mode: c_int, offset: i64, len: i64) -> c_int;
    fn ssi_file_getattr(f: *mut RawFile, a: *mut Attr) -> c_int;
    fn ssi_file_setattr(f: *mut RawFile, a: *const SetAttr) -> c_int;
    fn ssi_file_ioctl(f: *mut RawFile, cmd: u32, arg: u64) -> c_long;
    fn ssi_tty_termios(f: *mut RawFile, to: *mut u8) -> c_int;
    fn ssi_tty_winsize(f: *mut RawFile, to: *mut u8) -> c_int;
    fn ssi_pipe_bytes(f: *mut RawFile) -> c_int;
    fn ssi_creds_of_file(f: *mut RawFile) -> *const bindings::cred;
    fn ssi_creds_revert(old: *const bindings::cred);
    fn ssi_take_signal(sig: c_int) -> c_int;
    fn ssi_watch_new(f: *mut RawFile, id: u64) -> *mut c_void;
    fn ssi_watch_free(watch: *mut c_void);
    fn ssi_file_poll(f: *mut RawFile) -> u32;
    fn ssi_thread_interruptible();
    fn ssi_thread_interrupt(t: *mut bindings::task_struct);
    fn ssi_thread_settle();
    fn ssi_current_get() -> *mut bindings::task_struct;
}

fn length(r: isize) -> Result<usize> {
    usize::try_from(r).map_err(|_| Error::from_errno(r as c_int))
}

/// An open file, referenced. The last reference to a file may be dropped anywhere; a parked task
/// and who owes somebody the effect at once uses [`Held::put_now`].
///
/// # Invariants
///
/// The pointer is valid and a reference is owned.
pub struct Held(NonNull<RawFile>);

// SAFETY: Files may be used and put from any task.
unsafe impl Send for Held {}
// SAFETY: As above.
unsafe impl Sync for Held {}

impl Clone for Held {
    fn clone(&self) -> Self {
        // SAFETY: Referenced.
        unsafe { ssi_filp_get(self.0.as_ptr()) };
        Self(self.0)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { ssi_filp_put(self.0.as_ptr()) }
    }
}

impl Held {
    fn raw(&self) -> *mut RawFile {
        self.0.as_ptr()
    }

    /// Which file it is; for comparing.
    pub fn identity(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Gives the reference up. If it is the last the file is released in here; sleeps then.
    pub fn put_now(self) {
        let raw = self.raw();
        core::mem::forget(self);
        // SAFETY: The reference is ours and was not dropped.
        unsafe { ssi_filp_put_now(raw) }
    }

    /// Opens `path` with the caller's rights and `flags` of open(2).
    pub fn open(path: &[u8], flags: u32) -> Result<Self> {
        let p = zero_ended(path)?;
        // SAFETY: `p` ends in a zero.
        let f = from_err_ptr(unsafe { ssi_filp_open(p.as_ptr(), flags as c_int) })?;
        NonNull::new(f).map(Self).ok_or(ENOENT)
    }

    /// What stands for it here, if it is a file of ours.
    pub fn proxy(&self) -> Option<Arc<Proxy>> {
        // SAFETY: Referenced.
        let p = unsafe { ssi_file_proxy(self.raw()) };
        if p.is_null() {
            return None;
        }
        Some(borrow(p).into())
    }

    /// Facts about it, as `task` (none: the caller) has it open, and its path or name.
    pub fn look(&self, task: Option<&TaskRef>, path: &mut [u8]) -> Result<(Facts, usize)> {
        let mut f = Facts::default();
        let t = task.map_or(core::ptr::null_mut(), |t| t.as_ptr());
        // SAFETY: All are valid for the call, the buffer has the length given.
        let n = unsafe {
            ssi_file_look(
                t,
                self.raw(),
                &mut f,
                path.as_mut_ptr(),
                path.len() as c_int,
            )
        };
        Ok((f, length(n as isize)?))
    }

    /// Its flags.
    pub fn flags(&self) -> u32 {
        // SAFETY: Referenced.
        unsafe { ssi_file_flags(self.raw()) }
    }

    /// Sets the flags in `mask` to those of `value`; returns all there are now.
    pub fn set_flags(&self, value: u32, mask: u32) -> u32 {
        // SAFETY: Referenced.
        unsafe { ssi_file_set_flags(self.raw(), value, mask) }
    }

    /// Reads at `pos`, or at its own position if that is negative.
    pub fn read(&self, to: &mut [u8], pos: i64) -> Result<usize> {
        // SAFETY: Referenced; the buffer has the length given.
        length(unsafe { ssi_file_read(self.raw(), to.as_mut_ptr().cast(), to.len(), pos) })
    }

    /// Writes at `pos`, or at its own position if that is negative.
    pub fn write(&self, from: &[u8], pos: i64, how: u16) -> Result<usize> {
        // SAFETY: Referenced; the buffer has the length given.
        length(unsafe {
            ssi_file_write(
                self.raw(),
                from.as_ptr().cast(),
                from.len(),
                pos,
                how.into(),
            )
        })
    }

    /// Sets its position.
    pub fn seek(&self, offset: i64, whence: i32) -> Result<i64> {
        // SAFETY: Referenced.
        let r = unsafe { ssi_file_seek(self.raw(), offset, whence) };
        if r < 0 {
            return Err(Error::from_errno(r as c_int));
        }
        Ok(r)
    }

    /// Brings it to its storage.
    pub fn fsync(&self, start: i64, end: i64, datasync: bool) -> Result {
        // SAFETY: Referenced.
        to_result(unsafe { ssi_file_fsync(self.raw(), start, end, datasync.into()) })
    }

    /// See fallocate(2).
    pub fn fallocate(&self, mode: i32, offset: i64, len: i64) -> Result {
        // SAFETY: Referenced; the kernel checks the numbers.
        to_result(unsafe { ssi_file_fallocate(self.raw(), mode, offset, len) })
    }

    /// What stat(2) tells.
    pub fn getattr(&self) -> Result<Attr> {
        let mut a = Attr::default();
        // SAFETY: Referenced.
        to_result(unsafe { ssi_file_getattr(self.raw(), &mut a) })?;
        Ok(a)
    }

    /// Changes attributes with the caller's rights.
    pub fn setattr(&self, a: &SetAttr) -> Result {
        // SAFETY: Referenced; the kernel checks the numbers.
        to_result(unsafe { ssi_file_setattr(self.raw(), a) })
    }

    /// An ioctl whose argument is a number or an address of the caller's memory.
    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<i64> {
        // SAFETY: Referenced; the file's own code checks the address.
        let r = unsafe { ssi_file_ioctl(self.raw(), cmd, arg) };
        if r < 0 {
            return Err(Error::from_errno(r as c_int));
        }
        Ok(r as i64)
    }

    /// A terminal's settings as TCGETS2 tells them. TCGETS tells a prefix of that.
    pub fn termios(&self) -> Result<[u8; TERMIOS2_BYTES]> {
        let mut t = [0; TERMIOS2_BYTES];
        // SAFETY: Referenced, a terminal by the check in there; `t` is a struct termios2.
        to_result(unsafe { ssi_tty_termios(self.raw(), t.as_mut_ptr()) })?;
        Ok(t)
    }

    /// A terminal's size as TIOCGWINSZ tells it.
    pub fn winsize(&self) -> Result<[u8; 8]> {
        let mut t = [0; 8];
        // SAFETY: As in termios(); `t` is a struct winsize.
        to_result(unsafe { ssi_tty_winsize(self.raw(), t.as_mut_ptr()) })?;
        Ok(t)
    }

    /// Bytes waiting in a pipe.
    pub fn pipe_bytes(&self) -> Result<u32> {
        // SAFETY: Referenced.
        Ok(length(unsafe { ssi_pipe_bytes(self.raw()) } as isize)? as u32)
    }

    /// Which events hold.
    pub fn poll(&self) -> u32 {
        // SAFETY: Referenced.
        unsafe { ssi_file_poll(self.raw()) }
    }

    /// Runs `f` with the rights of who opened it.
    pub fn as_opener<R>(&self, f: impl FnOnce() -> R) -> R {
        // SAFETY: The file keeps its credentials, and `self` the file, until they are put back.
        let old = unsafe { ssi_creds_of_file(self.raw()) };
        let r = f();
        // SAFETY: What was there before, in the same task.
        unsafe { ssi_creds_revert(old) };
        r
    }
}

fn zero_ended(text: &[u8]) -> Result<KVec<u8>> {
    let mut v = KVec::with_capacity(text.len() + 1, GFP_KERNEL)?;
    v.extend_from_slice(text, GFP_KERNEL)?;
    v.push(0, GFP_KERNEL)?;
    Ok(v)
}

/// One descriptor and its file.
pub struct OpenFd {
    /// Its number.
    pub fd: u32,
    /// Closed by exec.
    pub cloexec: bool,
    /// The file.
    pub file: Held,
}

/// What `task` (none: the caller) has open, in ascending order.
///
/// # Errors
/// `E2BIG` when there is more than `max`.
pub fn descriptors(task: Option<&TaskRef>, max: usize) -> Result<KVVec<OpenFd>> {
    let t = task.map_or(core::ptr::null_mut(), |t| t.as_ptr());
    let mut room = 64.min(max);
    loop {
        let mut raw = KVVec::from_elem(RawFd::default(), room, GFP_KERNEL)?;
        let mut out = KVVec::with_capacity(room, GFP_KERNEL)?;
        // SAFETY: `raw` has room for as many.
        let n = unsafe { ssi_fds_get(t, raw.as_mut_ptr(), room as c_int) } as usize;
        for r in raw.iter().take(n) {
            // INVARIANT: The reference was taken in there.
            let Some(f) = NonNull::new(r.file as *mut RawFile) else {
                continue;
            };
            out.push(
                OpenFd {
                    fd: r.fd,
                    cloexec: r.cloexec != 0,
                    file: Held(f),
                },
                GFP_KERNEL,
            )?;
        }
        if n <= room {
            return Ok(out);
        }
        if n > max {
            return Err(E2BIG);
        }
        room = n.checked_add(16).ok_or(EOVERFLOW)?.min(max);
    }
}

/// Closes all the caller has open and installs these instead. They are in ascending order. Nobody
/// else may use the caller's descriptors meanwhile.
///
/// # Errors
/// `EMFILE`, `ENOMEM`: only some are installed then.
pub fn install(fds: KVVec<OpenFd>) -> Result {
    let Some(last) = fds.last().map(|d| d.fd) else {
        // SAFETY: The caller is a user task.
        unsafe { ssi_fds_close() };
        return Ok(());
    };
    let mut holes = KVVec::<c_int>::new();
    holes.reserve(last as usize + 1, GFP_KERNEL)?;
    // SAFETY: The caller is a user task.
    let limit = unsafe {
        ssi_fds_close();
        ssi_fd_limit(u64::from(last) + 1)
    };
    let mut fds = fds.into_iter().peekable();
    let mut r = Ok(());
    for n in 0..=last as c_int {
        let wanted = fds.peek().filter(|d| d.fd as c_int == n);
        // SAFETY: As above.
        let got = unsafe { ssi_fd_take(wanted.is_some_and(|d| d.cloexec).into()) };
        if got < 0 {
            r = Err(Error::from_errno(got));
            break;
        }
        if got != n {
            // SAFETY: It was taken just now.
            unsafe { ssi_fd_drop(got) };
            r = Err(EMFILE);
            break;
        }
        if wanted.is_some() {
            let Some(d) = fds.next() else { break };
            let raw = d.file.raw();
            core::mem::forget(d.file);
            // SAFETY: The descriptor is taken and empty; the reference goes to it.
            unsafe { ssi_fd_install(n, raw) };
        } else {
            holes.push(n, GFP_KERNEL)?;
        }
    }
    for n in &holes {
        // SAFETY: Taken above and still empty.
        unsafe { ssi_fd_drop(*n) };
    }
    // SAFETY: As above.
    unsafe { ssi_fd_limit(limit) };
    r
}

/// What tells waiting pollers about a file of ours.
#[pin_data]
pub struct PollHead {
    #[pin]
    head: Opaque<RawHead>,
}

// SAFETY: A wait queue head is made for use from any thread.
unsafe impl Send for PollHead {}
// SAFETY: As above; it has its own lock.
unsafe impl Sync for PollHead {}

impl PollHead {
    /// With nobody waiting.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // SAFETY: `slot` is valid for writes; name and key are static.
            head <- Opaque::ffi_init(|slot| unsafe {
                bindings::__init_waitqueue_head(
                    slot,
                    c"ssi".as_char_ptr(),
                    kernel::static_lock_class!().as_ptr(),
                )
            }),
        })
    }

    /// These events hold now.
    pub fn wake(&self, events: u32) {
        // SAFETY: The head is valid.
        unsafe { ssi_poll_wake(self.head.get(), events) }
    }
}

/// How a file of ours looks.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Shape {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: (u32, u32),
    pub flags: u32,
    pub can: u32,
}

/// Makes a file of ours; its name is what /proc shows.
pub fn new_proxy(proxy: Arc<Proxy>, name: &[u8], s: &Shape) -> Result<Held> {
    let name = zero_ended(name)?;
    let raw = Arc::into_raw(proxy).cast_mut().cast::<c_void>();
    let (major, minor) = s.rdev;
    // SAFETY: The name ends in a zero; the reference on the proxy goes to the file, or stays ours.
    let f = from_err_ptr(unsafe {
        ssi_proxy_new(
            name.as_ptr(),
            s.mode,
            s.uid,
            s.gid,
            major,
            minor,
            s.flags,
            s.can,
            raw,
        )
    });
    match f.map(NonNull::new) {
        // INVARIANT: A fresh file with one reference.
        Ok(Some(f)) => Ok(Held(f)),
        other => {
            // SAFETY: It did not go anywhere.
            drop(unsafe { Arc::from_raw(raw.cast::<Proxy>().cast_const()) });
            Err(other.err().unwrap_or(ENOMEM))
        }
    }
}

/// Where the data of a read or write of the caller goes or comes from.
pub struct Iter<'a>(&'a mut Opaque<RawIter>);

impl Iter<'_> {
    fn raw(&self) -> *mut RawIter {
        self.0.get()
    }

    /// Bytes left.
    pub fn count(&self) -> usize {
        // SAFETY: Valid while it is borrowed.
        unsafe { ssi_iter_count(self.raw()) }
    }

    /// Takes the next bytes. Returns how many could be taken.
    pub fn take(&mut self, to: &mut [u8]) -> usize {
        // SAFETY: Valid while it is borrowed; the buffer has the length given.
        unsafe { ssi_iter_from(to.as_mut_ptr().cast(), to.len(), self.raw()) }
    }

    /// Puts the next bytes. Returns how many could be put.
    pub fn put(&mut self, from: &[u8]) -> usize {
        // SAFETY: Valid while it is borrowed; the buffer has the length given.
        unsafe { ssi_iter_to(from.as_ptr().cast(), from.len(), self.raw()) }
    }

    /// Goes back over the last `n` bytes taken or put.
    pub fn revert(&mut self, n: usize) {
        // SAFETY: Valid while it is borrowed; callers went at least so far.
        unsafe { ssi_iter_revert(self.raw(), n) }
    }

    /// Whether the next `n` bytes can probably be put.
    pub fn is_writable(&self, n: usize) -> bool {
        // SAFETY: Valid while it is borrowed.
        unsafe { ssi_iter_writable(self.raw(), n) != 0 }
    }
}

/// The caller's process.
pub fn tgid() -> u32 {
    // SAFETY: No preconditions.
    unsafe { ssi_caller_tgid() }
}

/// Reads from the caller's memory.
pub fn user_read(to: &mut [u8], from: u64) -> Result {
    // SAFETY: The copy checks the user address.
    to_result(unsafe { ssi_caller_read(to.as_mut_ptr().cast(), from, to.len()) })
}

/// Sends the caller a signal as the kernel does for what it did itself.
pub fn raise(sig: i32) {
    // SAFETY: The caller checks the number.
    unsafe { ssi_raise(sig) }
}

/// [`crate::wire::file::Op::NO_TTIN`] and `NO_TTOU`, as they are for the caller.
pub fn tty_signals() -> u16 {
    // SAFETY: The caller is a task with signal handlers.
    unsafe { ssi_tty_signals() as u16 }
}

/// Takes `sig` back if the caller sent it to itself.
pub fn take_signal(sig: i32) -> bool {
    // SAFETY: The number is one of ours.
    unsafe { ssi_take_signal(sig) != 0 }
}

/// Brings [`home::ready`] for a file's number on every event at the file, as long as it exists.
/// Dropping it sleeps, and must not happen in [`home::ready`].
pub struct Watch {
    raw: NonNull<c_void>,
    /// Keeps what the wait entries are on.
    _file: Held,
}

// SAFETY: The C side uses its own locks.
unsafe impl Send for Watch {}
// SAFETY: `&self` offers nothing.
unsafe impl Sync for Watch {}

impl Watch {
    /// Starts watching.
    pub fn new(file: &Held, id: u64) -> Result<Self> {
        // SAFETY: The file is kept by the watch.
        let raw = NonNull::new(unsafe { ssi_watch_new(file.raw(), id) }).ok_or(ENOMEM)?;
        Ok(Self {
            raw,
            _file: file.clone(),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: Ours, given back once.
        unsafe { ssi_watch_free(self.raw.as_ptr()) }
    }
}

/// The calling kernel thread, which our own signal can interrupt.
pub struct Interruptible(NonNull<bindings::task_struct>);

// SAFETY: A task reference may be held anywhere.
unsafe impl Send for Interruptible {}
// SAFETY: Signals may be sent from anywhere.
unsafe impl Sync for Interruptible {}

impl Interruptible {
    /// The caller becomes interruptible.
    pub fn current() -> Self {
        // SAFETY: Called in a kernel thread of ours. The reference is ours; it is never null.
        unsafe {
            ssi_thread_interruptible();
            Self(NonNull::new_unchecked(ssi_current_get()))
        }
    }

    /// Interrupts what it waits in. Spins.
    pub fn interrupt(&self) {
        // SAFETY: The task is referenced.
        unsafe { ssi_thread_interrupt(self.0.as_ptr()) }
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::put_task_struct(self.0.as_ptr()) }
    }
}

/// The calling kernel thread forgets interruptions.
pub fn settle() {
    // SAFETY: Called in a kernel thread of ours.
    unsafe { ssi_thread_settle() }
}

// What the shim calls.

/// Proxies reach the shim as raw pointers of arcs.
fn borrow<'a>(proxy: *mut c_void) -> ArcBorrow<'a, Proxy> {
    // SAFETY: The shim passes only what ssi_proxy_new() got, and holds that reference while it does.
    unsafe { ArcBorrow::from_raw(proxy.cast::<Proxy>().cast_const()) }
}

/// The file of a call from the kernel.
struct Called(core::mem::ManuallyDrop<Held>);

impl Called {
    fn new(f: *mut RawFile) -> Self {
        // SAFETY: The kernel passes a valid file and keeps it for the call; the reference, which is
        // not ours, is never dropped.
        Self(core::mem::ManuallyDrop::new(Held(unsafe {
            NonNull::new_unchecked(f)
        })))
    }
}

fn iter<'a>(i: *mut RawIter) -> Iter<'a> {
    // SAFETY: The kernel passes a valid iterator that is the call's own.
    Iter(unsafe { &mut *i.cast::<Opaque<RawIter>>() })
}

fn errno(r: Result) -> c_int {
    r.map_or_else(|e| e.to_errno(), |()| 0)
}

fn bytes(r: Result<usize>) -> isize {
    r.map_or_else(|e| e.to_errno() as isize, |n| n as isize)
}

#[no_mangle]
extern "C" fn ssi_rs_file_read(
    proxy: *mut c_void,
    f: *mut RawFile,
    pos: i64,
    to: *mut RawIter,
) -> isize {
    bytes(guest::read(
        &borrow(proxy),
        &Called::new(f).0,
        pos,
        &mut iter(to),
    ))
}

#[no_mangle]
extern "C" fn ssi_rs_file_write(
    proxy: *mut c_void,
    f: *mut RawFile,
    pos: i64,
    how: c_int,
    from: *mut RawIter,
) -> isize {
    bytes(guest::write(
        &borrow(proxy),
        &Called::new(f).0,
        pos,
        how as u16,
        &mut iter(from),
    ))
}

#[no_mangle]
extern "C" fn ssi_rs_file_poll(
    proxy: *mut c_void,
    f: *mut RawFile,
    events: u32,
    notify: c_int,
) -> u32 {
    guest::poll(borrow(proxy).into(), &Called::new(f).0, events, notify != 0)
}

#[no_mangle]
extern "C" fn ssi_rs_file_ioctl(proxy: *mut c_void, f: *mut RawFile, cmd: u32, arg: u64) -> c_long {
    match guest::ioctl(&borrow(proxy), &Called::new(f).0, cmd, arg) {
        Ok(n) => n as c_long,
        Err(e) => e.to_errno() as c_long,
    }
}

#[no_mangle]
extern "C" fn ssi_rs_file_seek(
    proxy: *mut c_void,
    f: *mut RawFile,
    offset: i64,
    whence: c_int,
) -> i64 {
    match guest::seek(&borrow(proxy), &Called::new(f).0, offset, whence) {
        Ok(n) => n,
        Err(e) => e.to_errno().into(),
    }
}

#[no_mangle]
extern "C" fn ssi_rs_file_fsync(
    proxy: *mut c_void,
    f: *mut RawFile,
    start: i64,
    end: i64,
    datasync: c_int,
) -> c_int {
    errno(guest::fsync(
        &borrow(proxy),
        &Called::new(f).0,
        start,
        end,
        datasync != 0,
    ))
}

#[no_mangle]
extern "C" fn ssi_rs_file_fallocate(
    proxy: *mut c_void,
    f: *mut RawFile,
    mode: c_int,
    offset: i64,
    len: i64,
) -> c_int {
    errno(guest::fallocate(
        &borrow(proxy),
        &Called::new(f).0,
        mode,
        offset,
        len,
    ))
}

#[no_mangle]
extern "C" fn ssi_rs_file_getattr(proxy: *mut c_void, a: *mut Attr) -> c_int {
    match guest::getattr(&borrow(proxy)) {
        Ok(got) => {
            // SAFETY: The shim's variable.
            unsafe { *a = got };
            0
        }
        Err(e) => e.to_errno(),
    }
}

#[no_mangle]
extern "C" fn ssi_rs_file_setattr(proxy: *mut c_void, a: *const SetAttr) -> c_int {
    // SAFETY: The shim's variable.
    errno(guest::setattr(&borrow(proxy), unsafe { &*a }))
}

#[no_mangle]
extern "C" fn ssi_rs_file_poll_head(proxy: *mut c_void) -> *mut RawHead {
    borrow(proxy).get_ref_head()
}

#[no_mangle]
extern "C" fn ssi_rs_file_get(proxy: *mut c_void) {
    let a: Arc<Proxy> = borrow(proxy).into();
    core::mem::forget(a);
}

#[no_mangle]
extern "C" fn ssi_rs_file_put(proxy: *mut c_void) {
    // SAFETY: Pairs with ssi_rs_file_get(), or with new_proxy().
    drop(unsafe { Arc::from_raw(proxy.cast::<Proxy>().cast_const()) });
}

#[no_mangle]
extern "C" fn ssi_rs_file_closed(proxy: *mut c_void) {
    guest::closed(&borrow(proxy).into());
}

#[no_mangle]
extern "C" fn ssi_rs_file_ready(id: u64) {
    home::ready(id);
}

impl Proxy {
    fn get_ref_head(&self) -> *mut RawHead {
        self.poll_head.head.get()
    }
}
