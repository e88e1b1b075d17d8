// SPDX-License-Identifier: GPL-2.0-only

//! Stream sockets that ssid has connected and handed down, plain TCP or with kernel TLS.

use core::ptr::NonNull;
use kernel::alloc::Allocator;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed};

/// A send that finds no room comes back after this, so that its thread can look around.
const SEND_MS: u32 = 1_000;
/// Unsent bytes in a socket above which it takes no more: what overtakes in the queue of the link
/// can not overtake them.
const UNSENT_BYTES: u32 = 128 * 1024;
/// Most bytes in one TLS record.
const RECORD_BYTES: usize = 16 * 1024;

const SOL_TLS: c_int = 282;
const TLS_GET_RECORD_TYPE: c_int = 2;
const RECORD_ALERT: u8 = 21;
const RECORD_DATA: u8 = 23;
const ALERT_CLOSE_NOTIFY: u8 = 0;

// Some structs behind these pointers have no fields in this configuration.
#[allow(improper_ctypes)]
unsafe extern "C" {
    fn ssi_sock_is_tcp(sock: *mut bindings::socket) -> c_int;
    fn ssi_sock_is_established(sock: *mut bindings::socket) -> c_int;
    fn ssi_sock_adopt(sock: *mut bindings::socket, send_ms: c_uint, notsent: c_uint);
    fn ssi_sock_leave_cgroup(sock: *mut bindings::socket) -> c_int;
}

#[cfg(SSI_BENCH)]
unsafe extern "C" {
    safe static ssi_renew_records: c_uint;
}

/// Records after which this build for tests was told to renew a link; 0 if it was not.
#[cfg(SSI_BENCH)]
pub fn renew_records() -> u32 {
    ssi_renew_records
}

/// Whether a send may wait for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// It may, for a while.
    Yes,
    /// It may not.
    No,
}

/// A connected TCP socket of the module. It is shut when this is dropped.
///
/// # Invariants
///
/// The pointer is a socket whose file this owns a reference of; `sk` of it is a TCP socket.
pub struct Socket {
    raw: NonNull<bindings::socket>,
    shut: Atomic<bool>,
    /// Records sent, if it is TLS; never fewer than they are.
    sent: Atomic<u64>,
    /// Records received, if it is TLS; an estimate.
    received: Atomic<u64>,
}

// SAFETY: Sockets have locks of their own.
unsafe impl Send for Socket {}
// SAFETY: As above.
unsafe impl Sync for Socket {}

impl Socket {
    /// The socket behind a file descriptor of the caller.
    ///
    /// # Errors
    /// `EBADF`, `ENOTSOCK`; `EPROTOTYPE` if it is not TCP; `ENOTCONN` if it is not connected.
    pub fn from_fd(fd: i32) -> Result<Self> {
        let mut err: c_int = 0;
        // SAFETY: `err` is valid for writes.
        let raw = unsafe { bindings::sockfd_lookup(fd, &mut err) };
        let Some(raw) = NonNull::new(raw) else {
            to_result(err)?;
            return Err(EBADF);
        };
        // INVARIANT: sockfd_lookup() has taken a reference of the file for us; that it is TCP is
        // checked before anything but drop() is called.
        let s = Self {
            raw,
            shut: Atomic::new(false),
            sent: Atomic::new(0),
            received: Atomic::new(0),
        };
        // SAFETY: The socket is valid by the reference.
        if unsafe { ssi_sock_is_tcp(raw.as_ptr()) } == 0 {
            return Err(EPROTOTYPE);
        }
        // SAFETY: It has an `sk`, as the last check says.
        if unsafe { ssi_sock_is_established(raw.as_ptr()) } == 0 {
            return Err(ENOTCONN);
        }
        // SAFETY: It is TCP.
        unsafe { ssi_sock_adopt(raw.as_ptr(), SEND_MS, UNSENT_BYTES) };
        Ok(s)
    }

    /// Ends it in both directions. Everybody who waits in it comes back.
    pub fn shut(&self) {
        if self.shut.xchg(true, Full) {
            return;
        }
        // SAFETY: Valid by the invariant.
        unsafe {
            bindings::kernel_sock_shutdown(
                self.raw.as_ptr(),
                bindings::sock_shutdown_cmd_SHUT_RDWR,
            );
        }
    }

    /// Whether it was shut from this side.
    pub fn is_shut(&self) -> bool {
        self.shut.load(Acquire)
    }

    /// Moves it out of the memory cgroup of who opened it. False while it holds memory. Nothing
    /// may be half sent.
    pub fn leave_cgroup(&self) -> bool {
        // SAFETY: It is TCP by the invariant.
        unsafe { ssi_sock_leave_cgroup(self.raw.as_ptr()) != 0 }
    }

    /// Records sent and received so far, an upper bound and an estimate.
    pub fn records(&self) -> (u64, u64) {
        (self.sent.load(Relaxed), self.received.load(Relaxed))
    }

    /// Sends the bytes of `a`, then those of `b`; returns how many of both it took.
    ///
    /// # Errors
    /// `EAGAIN` when there was no room; whatever broke the connection.
    pub fn send(&self, a: &[u8], b: &[u8], wait: Wait) -> Result<usize> {
        let len = a.len().checked_add(b.len()).ok_or(EINVAL)?;
        let part = |p: &[u8]| bindings::kvec {
            iov_base: p.as_ptr().cast_mut().cast(),
            iov_len: p.len(),
        };
        let mut parts = [part(a), part(b)];
        // SAFETY: All zeroes is a valid `msghdr`: no address, no control data.
        let mut m: bindings::msghdr = unsafe { core::mem::zeroed() };
        m.msg_flags = bindings::MSG_NOSIGNAL;
        if wait == Wait::No {
            m.msg_flags |= bindings::MSG_DONTWAIT;
        }
        // SAFETY: The socket is valid; the parts describe `len` readable bytes and are only read.
        let r = unsafe {
            bindings::kernel_sendmsg(self.raw.as_ptr(), &mut m, parts.as_mut_ptr(), 2, len)
        };
        let n = match usize::try_from(r) {
            Ok(n) => n,
            Err(_) => return Err(Error::from_errno(r)),
        };
        self.sent.add((n / RECORD_BYTES + 1) as i64 as u64, Relaxed);
        Ok(n)
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// `ENODATA` when the peer has ended the connection before its first byte, `ECONNRESET` after
    /// it; `EPROTO` for a TLS record that is neither data nor the end; what broke the connection.
    pub fn receive(&self, buf: &mut [u8]) -> Result {
        // SAFETY: The buffer is valid for writes of its length.
        unsafe { self.receive_raw(buf.as_mut_ptr(), buf.len()) }
    }

    /// Receives exactly `len` bytes.
    ///
    /// # Errors
    /// `ENOMEM`, when nothing was received; as [`Socket::receive`].
    pub fn receive_vec<A: Allocator>(&self, len: usize, buf: &mut Vec<u8, A>) -> Result {
        buf.clear();
        buf.reserve(len, GFP_KERNEL | __GFP_NOWARN)?;
        // SAFETY: The capacity is at least `len`.
        unsafe {
            self.receive_raw(buf.as_mut_ptr(), len)?;
            buf.inc_len(len);
        }
        Ok(())
    }

    /// # Safety
    /// `to` must be valid for writes of `len` bytes.
    unsafe fn receive_raw(&self, to: *mut u8, len: usize) -> Result {
        let mut done = 0;
        while done < len {
            // Room for a header of 16 bytes and the type of the record.
            let mut control = [0u64; 4];
            // SAFETY: All zeroes is a valid `msghdr`.
            let mut m: bindings::msghdr = unsafe { core::mem::zeroed() };
            m.__bindgen_anon_1.msg_control = control.as_mut_ptr().cast();
            m.msg_controllen = size_of_val(&control) as _;
            // SAFETY: Inside of what the caller vouches for.
            let at = unsafe { to.add(done) };
            let mut part = bindings::kvec {
                iov_base: at.cast(),
                iov_len: len - done,
            };
            // SAFETY: The socket is valid; part and control are valid for writes until it returns.
            let r = unsafe {
                bindings::kernel_recvmsg(
                    self.raw.as_ptr(),
                    &mut m,
                    &mut part,
                    1,
                    len - done,
                    bindings::MSG_WAITALL as c_int,
                )
            };
            let n = match usize::try_from(r) {
                Ok(0) => return Err(if done == 0 { ENODATA } else { ECONNRESET }),
                Ok(n) => n.min(len - done),
                Err(_) if r == EAGAIN.to_errno() || r == EINTR.to_errno() => continue,
                Err(_) => return Err(Error::from_errno(r)),
            };
            match record_type(&control) {
                None | Some(RECORD_DATA) => {}
                Some(RECORD_ALERT) => {
                    // SAFETY: `n` bytes were written there.
                    let alert = unsafe { core::slice::from_raw_parts(at, n) };
                    let closed = alert.get(1) == Some(&ALERT_CLOSE_NOTIFY);
                    return Err(match (closed, done) {
                        (true, 0) => ENODATA,
                        (true, _) => ECONNRESET,
                        (false, _) => EPROTO,
                    });
                }
                Some(_) => return Err(EPROTO),
            }
            self.received
                .add((n / RECORD_BYTES + 1) as i64 as u64, Relaxed);
            done += n;
        }
        Ok(())
    }
}

/// The type of the TLS record in a control buffer: `struct cmsghdr` and one byte.
fn record_type(control: &[u64; 4]) -> Option<u8> {
    let [_, level_and_type, value, _] = *control;
    let level = level_and_type as u32 as c_int;
    let kind = (level_and_type >> 32) as u32 as c_int;
    (level == SOL_TLS && kind == TLS_GET_RECORD_TYPE).then_some(value as u8)
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: The reference is ours, and given back once. Shutting has no meaning for a socket
        // that turned out not to be one of TCP: it is left as it was.
        unsafe {
            if ssi_sock_is_tcp(self.raw.as_ptr()) != 0 {
                self.shut();
            }
            bindings::fput((*self.raw.as_ptr()).file);
        }
    }
}
