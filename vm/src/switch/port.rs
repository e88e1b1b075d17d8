// SPDX-License-Identifier: MIT OR Apache-2.0

//! One node's side of the switch.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

/// How long a receiver may take nothing before it counts as frozen.
pub(crate) const PATIENCE: Duration = Duration::from_millis(50);
/// What a queue holds before senders wait. Small: what waits here delays what comes after it.
const QUEUE: usize = 256 << 10;
/// What the queue of a frozen receiver holds: more than TCP sends without an answer.
pub(crate) const FROZEN_QUEUE: usize = 16 << 20;
/// Longest frame, with its length in front: what QEMU takes.
const FRAME_MAX: usize = (68 << 10) + 4;

/// Whether a port can take another frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// Not now, but soon.
    Wait,
    /// Nobody is there, or has been for long.
    No,
}

/// Bytes from a node, taken out frame by frame.
#[derive(Default)]
pub(crate) struct Inbox {
    bytes: Vec<u8>,
    taken: usize,
}

impl Inbox {
    /// The first frame with its length in front, if it is complete.
    pub(crate) fn frame(&self) -> Option<&[u8]> {
        let rest = &self.bytes[self.taken..];
        rest.get(..self.size()?)
    }

    /// Drops the first frame.
    pub(crate) fn advance(&mut self) {
        self.taken += self.size().unwrap_or(0);
    }

    fn size(&self) -> Option<usize> {
        let length = self.bytes[self.taken..].first_chunk()?;
        Some(4 + usize::try_from(u32::from_be_bytes(*length)).ok()?)
    }

    /// Adds bytes; false if they cannot be frames.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
        self.size().is_none_or(|size| size <= FRAME_MAX)
    }
}

/// One node's side.
pub(crate) struct Port {
    listener: UnixListener,
    link: Option<UnixStream>,
    pub(crate) inbox: Inbox,
    queue: VecDeque<u8>,
    /// When the node last took something, or had nothing to take.
    took: Instant,
}

impl Port {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self {
            listener,
            link: None,
            inbox: Inbox::default(),
            queue: VecDeque::new(),
            took: Instant::now(),
        }
    }

    /// What to wait for. A node whose frames could not all be forwarded is not read.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let Some(link) = &self.link else {
            return (self.listener.as_fd(), PollFlags::IN);
        };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.inbox.frame().is_none());
        flags.set(PollFlags::OUT, !self.queue.is_empty());
        (link.as_fd(), flags)
    }

    /// Takes the connection of a VM that has started.
    pub(crate) fn accept(&mut self) {
        if self.link.is_none()
            && let Ok((link, _)) = self.listener.accept()
            && link.set_nonblocking(true).is_ok()
        {
            self.link = Some(link);
        }
    }

    fn unplug(&mut self) {
        self.link = None;
        self.inbox = Inbox::default();
        self.queue.clear();
    }

    /// Reads what the node has sent, unless earlier frames still wait.
    pub(crate) fn fill(&mut self) {
        let Some(link) = &mut self.link else { return };
        if self.inbox.frame().is_some() {
            return;
        }
        let mut buffer = [0; 64 << 10];
        let sound = match link.read(&mut buffer) {
            Ok(0) => false,
            Ok(size) => self.inbox.feed(&buffer[..size]),
            Err(error) => is_momentary(&error),
        };
        if !sound {
            self.unplug();
        }
    }

    /// Whether there is room for a frame.
    pub(crate) fn room(&self, now: Instant) -> Room {
        if self.link.is_none() || self.queue.len() >= FROZEN_QUEUE {
            Room::No
        } else if self.queue.len() < QUEUE || now.duration_since(self.took) >= PATIENCE {
            Room::Yes
        } else {
            Room::Wait
        }
    }

    /// Queues a frame.
    pub(crate) fn push(&mut self, frame: &[u8], now: Instant) {
        if self.queue.is_empty() {
            self.took = now;
        }
        self.queue.extend(frame);
    }

    /// Writes what the node takes.
    pub(crate) fn flush(&mut self, now: Instant) {
        while let Some(link) = &mut self.link
            && !self.queue.is_empty()
        {
            match link.write(self.queue.as_slices().0) {
                Ok(size) => {
                    self.queue.drain(..size);
                    self.took = now;
                }
                Err(error) if is_momentary(&error) => return,
                Err(_) => self.unplug(),
            }
        }
    }
}

fn is_momentary(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
