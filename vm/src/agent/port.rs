// SPDX-License-Identifier: MIT OR Apache-2.0

//! The virtio-serial ports.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::session;

/// Serves every port whose name begins with `ssi.exec.`, for ever. Ports may appear late.
pub fn serve() -> io::Result<ExitCode> {
    let mut known = HashSet::new();
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
            let is_ours = fs::read_to_string(entry.path().join("name"))
                .is_ok_and(|name| name.starts_with("ssi.exec."));
            if is_ours && known.insert(entry.file_name()) {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                    .open(std::path::Path::new("/dev").join(entry.file_name()))?;
                let port = Port::new(file)?;
                thread::Builder::new()
                    .stack_size(256 << 10)
                    .spawn(move || session::serve(&port))?;
            }
        }
        // The host adds all ports within moments of each other.
        let wait = if known.is_empty() { 20 } else { 1000 };
        thread::sleep(Duration::from_millis(wait));
    }
}

/// How long a host must have been away to have gone.
const AWAY: Duration = Duration::from_secs(1);

/// One port. Reading it is safe at any time; a host that is not there is not an end.
pub struct Port {
    file: File,
    /// Edge triggered: level triggered, a port without a host would always be ready.
    changes: std::os::fd::OwnedFd,
}

impl Port {
    fn new(file: File) -> io::Result<Self> {
        let changes = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&changes, &file, epoll::EventData::new_u64(0), flags)?;
        Ok(Self { file, changes })
    }

    /// Waits until the host has sent something or has changed.
    pub fn wait(&self) {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        let gone = match poll(&mut fds, None) {
            Ok(_) => fds[0].revents().contains(PollFlags::HUP),
            Err(_) => false,
        };
        if gone {
            let mut events = Vec::with_capacity(1);
            // Interrupted, the caller finds nothing and comes back.
            let _ = epoll::wait(&self.changes, spare_capacity(&mut events), None);
        }
    }

    /// Whether the host has gone. What it sends overtakes the news of its coming and going, so a host that seems
    /// to be away may be the next one, of whom the first words have been read already: then it is back at once.
    pub fn has_lost_its_host(&self) -> bool {
        let end = Instant::now() + AWAY;
        loop {
            let mut fds = [PollFd::new(&self.file, PollFlags::empty())];
            let away = poll(&mut fds, Some(&Timespec::default())).is_ok()
                && fds[0].revents().contains(PollFlags::HUP);
            if !away || Instant::now() >= end {
                return away;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Reads what there is; `None` is nothing.
    pub fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        rustix::io::read(&self.file, buffer)
            .ok()
            .filter(|&size| size > 0)
    }

    /// Writes what fits.
    pub fn write(&self, bytes: &[u8]) -> usize {
        rustix::io::write(&self.file, bytes).unwrap_or(0)
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port whose far end is the write end of a FIFO: without a writer, it is hung up.
    fn port(path: &std::path::Path) -> Port {
        let _ = fs::remove_file(path);
        rustix::fs::mkfifoat(rustix::fs::CWD, path, 0o600.into()).unwrap();
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .unwrap();
        Port::new(file).unwrap()
    }

    fn host(path: &std::path::Path) -> File {
        OpenOptions::new().write(true).open(path).unwrap()
    }

    #[test]
    fn a_host_that_follows_another_has_not_gone() {
        let path = std::env::temp_dir().join(format!("agent-port-{}", std::process::id()));
        let port = port(&path);
        drop(host(&path));
        let next = {
            let path = path.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(100));
                host(&path)
            })
        };
        assert!(!port.has_lost_its_host());
        drop(next.join().unwrap());
        assert!(port.has_lost_its_host());
        fs::remove_file(&path).unwrap();
    }
}
