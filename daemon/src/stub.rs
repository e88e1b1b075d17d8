// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stubs: the fresh processes that become guests, from their start to the day they are reaped.
//!
//! A guest is our child, so it must be reaped whenever it ends; [`reap`] does that for every
//! child, known or not (a guest may clone with `CLONE_PARENT`).

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::sys;

/// The stub program, built from `stub/stub.rs`.
const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/stub"));
/// Children are also looked for this often, should a signal be missed.
const REAP_EVERY: Duration = Duration::from_secs(2);

/// A stub could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The module's device cannot be opened.
    #[error("cannot open {path}")]
    Device {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the number.
    #[error("process {0} exists on this node")]
    Taken(u32),
    /// The kernel refused.
    #[error("cannot start a process as {pid}")]
    Clone {
        /// The number asked for.
        pid: u32,
        /// Why.
        source: io::Error,
    },
}

/// Starts stubs and knows those that live.
#[derive(Debug)]
pub struct Stubs {
    image: OwnedFd,
    device: PathBuf,
    living: Mutex<HashSet<u32>>,
}

/// A file in memory that holds the stub program.
///
/// # Errors
/// What the kernel says.
pub fn image() -> io::Result<OwnedFd> {
    let fd = memfd_create("stub", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let mut file = File::from(fd);
    file.write_all(IMAGE)?;
    Ok(file.into())
}

impl Stubs {
    /// Prepares to start stubs that open `device`.
    ///
    /// # Errors
    /// When the program cannot be put into a file in memory.
    pub fn new(device: impl Into<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            image: image()?,
            device: device.into(),
            living: Mutex::default(),
        })
    }

    fn living(&self) -> std::sync::MutexGuard<'_, HashSet<u32>> {
        self.living.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a stub with the number `pid` that offers itself to the module for `token`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn start(&self, pid: u32, token: u64, clocks: &str) -> Result<(), Error> {
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&self.device)
            .map_err(|source| Error::Device {
                path: self.device.clone(),
                source,
            })?;
        // The lock is held so that the child is in the table before it can be reaped.
        let mut living = self.living();
        sys::spawn_as(
            pid,
            self.image.as_fd(),
            device.as_fd(),
            "ssi-stub",
            &token.to_string(),
            clocks,
        )
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EEXIST) => Error::Taken(pid),
            _ => Error::Clone { pid, source },
        })?;
        living.insert(pid);
        Ok(())
    }

    /// Whether `pid` is a stub, or was one, that has not been reaped.
    pub fn has(&self, pid: u32) -> bool {
        self.living().contains(&pid)
    }

    /// Reaps every child that has ended.
    fn reap_ended(&self) {
        let mut living = self.living();
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(status) => {
                    let Some(pid) = status.pid().and_then(|p| u32::try_from(p.as_raw()).ok())
                    else {
                        return;
                    };
                    let known = living.remove(&pid);
                    tracing::debug!(pid, known, "child ended: {status:?}");
                }
                // A status the crate has no word for: the child is reaped all the same.
                Err(nix::errno::Errno::EINVAL) => {}
                Err(e) => {
                    tracing::warn!("cannot reap children: {e}");
                    return;
                }
            }
        }
    }
}

/// Reaps children for as long as the daemon runs.
///
/// # Errors
/// When SIGCHLD cannot be listened to.
pub async fn reap(stubs: std::sync::Arc<Stubs>) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    loop {
        // Both outcomes mean the same: look.
        let _ = tokio::time::timeout(REAP_EVERY, ended.recv()).await;
        stubs.reap_ended();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_is_a_small_static_program_far_from_others() {
        assert_eq!(&IMAGE[..4], b"\x7fELF");
        assert_eq!(u16::from_le_bytes([IMAGE[16], IMAGE[17]]), 2, "ET_EXEC");
        let entry = u64::from_le_bytes(IMAGE[24..32].try_into().unwrap());
        assert_eq!(entry >> 20, 0x1b5_0000_0000 >> 20);
        assert!(IMAGE.len() < 16 * 1024);
    }

    #[test]
    fn a_missing_device_is_named() {
        let stubs = Stubs::new("/nonexistent/ssi").unwrap();
        let e = stubs.start(1, 1, "").unwrap_err();
        assert_eq!(e.to_string(), "cannot open /nonexistent/ssi");
    }
}
