// SPDX-License-Identifier: MIT OR Apache-2.0

//! The module, as the daemon sees it: every command of [`ssi::uapi`] as a function, every event as
//! a value.

use std::fmt::Debug;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use ssi::uapi::{self, Attr, Attrs, Cmd, FileId, ProcRecord, Reason, Report, Writer};
use ssi::wire::Class;
use tokio::sync::{Semaphore, mpsc};
use zerocopy::{FromBytes, IntoBytes};

use crate::failure::Refusal;
use crate::msg::MAX_PROCESSES;
use crate::netlink::{self, Events, Family, Heard};

/// How long the module may take to answer.
const ANSWER_IN: Duration = Duration::from_secs(20);
/// Requests under way at once; more wait.
const MAX_REQUESTS: usize = 16;
/// Events that wait to be handled. Far more than links and migrations there can be at once; when
/// it is full the reader waits, and the kernel says what is lost.
const MAX_EVENTS: usize = 256;
/// Room for the attributes of one request.
const REQUEST_BYTES: usize = uapi::MAX_VALUE_BYTES + 1024;

/// The module did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not loaded.
    #[error("the module ssi is not loaded: load it with `modprobe ssi` or `insmod ssi.ko`")]
    NotLoaded(#[source] netlink::Error),
    /// It speaks another version.
    #[error(
        "the module speaks version {module} of the netlink protocol, this daemon version {daemon}: update the older one"
    )]
    Version {
        /// The module's.
        module: u32,
        /// Ours.
        daemon: u32,
    },
    /// It cannot make this machine the node it should be.
    #[error("the module does not take this machine as {node}: {why}")]
    Join {
        /// The node.
        node: NodeId,
        /// What stands against it.
        why: &'static str,
    },
    /// A request failed.
    #[error("{command:?}: {source}")]
    Request {
        /// The request.
        command: Cmd,
        /// Why.
        source: netlink::Error,
    },
    /// A request or its answer does not fit the protocol.
    #[error("{command:?}: message does not fit: {what:?}")]
    Protocol {
        /// The request.
        command: Cmd,
        /// What does not fit.
        what: uapi::Error,
    },
    /// It cannot do that to this process.
    #[error("{0}")]
    Refused(Refusal),
    /// It did not answer in time.
    #[error("{0:?}: no answer")]
    Timeout(Cmd),
}

impl Error {
    /// The error number the module answered with, if it did.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Request {
                source: netlink::Error::Errno(e),
                ..
            } => e.raw_os_error(),
            _ => None,
        }
    }
}

/// What the module reports by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A link broke: connect again.
    LinkDown {
        /// To this node.
        peer: NodeId,
        /// Of this class.
        class: Class,
        /// Because of this error number.
        errno: u32,
    },
    /// A link nears the limit of its keys: connect again.
    Renew {
        /// To this node.
        peer: NodeId,
        /// Of this class.
        class: Class,
    },
    /// A migration from here ended.
    Migrated {
        /// Its name.
        token: u64,
        /// What came of it.
        outcome: Result<Report, Refusal>,
    },
    /// The memory of a process that left is complete at its new node.
    Filled {
        /// The migration.
        token: u64,
        /// The final report.
        report: Report,
    },
    /// Events were lost: what they said must be asked for.
    Lost,
}

/// Carries requests to the module. The real one is [`Family`]; tests have another.
pub trait Channel: Send + Sync + Debug {
    /// Sends a request and returns the attributes of the answer. Blocks.
    ///
    /// # Errors
    /// See [`Family::request`].
    fn request(&self, cmd: Cmd, attributes: Vec<u8>) -> Result<Vec<u8>, netlink::Error>;
}

impl Channel for Family {
    fn request(&self, cmd: Cmd, attributes: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        Family::request(self, cmd as u8, attributes)
    }
}

/// Checks the version of the protocol that the module says it speaks.
fn same_version(module: u32) -> Result<(), Error> {
    let daemon = u32::from(uapi::VERSION);
    match module == daemon {
        true => Ok(()),
        false => Err(Error::Version { module, daemon }),
    }
}

/// A handle to the module.
#[derive(Clone, Debug)]
pub struct Kmod {
    channel: Arc<dyn Channel>,
    requests: Arc<Semaphore>,
}

type Fill<'a> = &'a (dyn Fn(&mut Writer<'_>) -> Result<(), uapi::Error> + Sync);

impl Kmod {
    /// Finds the module, joins its events and says who we are.
    ///
    /// # Errors
    /// [`Error::NotLoaded`], [`Error::Version`], and what the module says.
    pub async fn open(node: NodeId) -> Result<(Self, mpsc::Receiver<Event>), Error> {
        let (family, group) = Family::resolve(uapi::FAMILY, uapi::EVENTS, uapi::VERSION, ANSWER_IN)
            .map_err(Error::NotLoaded)?;
        let events = Events::join(&family, group).map_err(Error::NotLoaded)?;
        let (sender, receiver) = mpsc::channel(MAX_EVENTS);
        std::thread::Builder::new()
            .name("ssi-events".to_owned())
            .spawn(move || listen(events, &sender))
            .map_err(|e| Error::NotLoaded(netlink::Error::Socket(e)))?;
        let module = Self::with(Arc::new(family));
        module.hello(node).await?;
        Ok((module, receiver))
    }

    /// A module behind another channel.
    pub fn with(channel: Arc<dyn Channel>) -> Self {
        Self {
            channel,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
        }
    }

    async fn call(&self, command: Cmd, fill: Fill<'_>) -> Result<Vec<u8>, Error> {
        self.call_with(command, fill, ()).await
    }

    /// As [`Kmod::call`]; `keep` lives until the module has answered.
    async fn call_with(
        &self,
        command: Cmd,
        fill: Fill<'_>,
        keep: impl Send + 'static,
    ) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; REQUEST_BYTES];
        let mut writer = Writer::new(&mut buffer);
        fill(&mut writer).map_err(|what| Error::Protocol { command, what })?;
        let length = writer.finish().len();
        buffer.truncate(length);

        let permit = Arc::clone(&self.requests).acquire_owned().await;
        let channel = Arc::clone(&self.channel);
        let task = tokio::task::spawn_blocking(move || {
            let answer = channel.request(command, buffer);
            drop((permit, keep));
            answer
        });
        match tokio::time::timeout(ANSWER_IN * 2, task).await {
            Ok(Ok(answer)) => answer.map_err(|source| Error::Request { command, source }),
            Ok(Err(_)) | Err(_) => Err(Error::Timeout(command)),
        }
    }

    /// The version of what the loaded module says to those of other nodes. It stays as it is.
    ///
    /// # Errors
    /// [`Error::NotLoaded`], [`Error::Version`].
    pub async fn wire_version() -> Result<u32, Error> {
        let (family, _) = Family::resolve(uapi::FAMILY, uapi::EVENTS, uapi::VERSION, ANSWER_IN)
            .map_err(Error::NotLoaded)?;
        Self::with(Arc::new(family)).ask_wire_version().await
    }

    async fn ask_wire_version(&self) -> Result<u32, Error> {
        let command = Cmd::Hello;
        let answer = self
            .call(command, &|w| {
                // No module has that.
                w.u32(Attr::Version, 0)?;
                w.u32(Attr::Node, 1)
            })
            .await?;
        let wrong = |what| Error::Protocol { command, what };
        let answer = Attrs::parse(&answer).map_err(wrong)?;
        same_version(answer.u32(Attr::Version).map_err(wrong)?)?;
        answer.u32(Attr::Wire).map_err(wrong)
    }

    async fn hello(&self, node: NodeId) -> Result<(), Error> {
        let command = Cmd::Hello;
        let answer = self
            .call(command, &|w| {
                w.u32(Attr::Version, u32::from(uapi::VERSION))?;
                w.u32(Attr::Node, u32::from(node.get()))
            })
            .await
            .map_err(|e| match e.errno() {
                Some(libc::EBUSY) => Error::Join {
                    node,
                    why: "it was another node since it was loaded",
                },
                Some(libc::EEXIST) => Error::Join {
                    node,
                    why: "a process has a number of another node's range; the kernel log names it",
                },
                Some(libc::ERANGE) => Error::Join {
                    node,
                    why: "kernel.pid_max is too small",
                },
                _ => e,
            })?;
        let wrong = |what| Error::Protocol { command, what };
        let module = Attrs::parse(&answer)
            .and_then(|a| a.u32(Attr::Version))
            .map_err(wrong)?;
        same_version(module)
    }

    /// Hands down a connected socket.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn link(&self, peer: NodeId, class: Class, socket: OwnedFd) -> Result<(), Error> {
        let fd = socket.as_raw_fd().cast_unsigned();
        self.call_with(
            Cmd::Link,
            &|w| {
                w.u32(Attr::Peer, u32::from(peer.get()))?;
                w.u32(Attr::Class, class as u32)?;
                w.u32(Attr::Fd, fd)
            },
            socket,
        )
        .await
        .map(drop)
    }

    /// Declares a peer dead.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn peer_dead(&self, peer: NodeId) -> Result<(), Error> {
        self.call(Cmd::PeerDead, &|w| w.u32(Attr::Peer, u32::from(peer.get())))
            .await
            .map(drop)
    }

    /// Starts a migration; its end comes as [`Event::Migrated`].
    ///
    /// # Errors
    /// [`Error::Refused`] and the rest of [`Error`].
    pub async fn migrate(
        &self,
        pid: u32,
        to: NodeId,
        token: u64,
        files: &[FileId],
    ) -> Result<(), Error> {
        let answer = self
            .call(Cmd::Migrate, &|w| {
                w.u32(Attr::Pid, pid)?;
                w.u32(Attr::Peer, u32::from(to.get()))?;
                w.u64(Attr::Token, token)?;
                w.bytes(Attr::Files, files.as_bytes())
            })
            .await?;
        verdict(Cmd::Migrate, &answer)
    }

    /// Asks whether a process that runs here would move.
    ///
    /// # Errors
    /// [`Error::Refused`] and the rest of [`Error`].
    pub async fn why(&self, pid: u32) -> Result<(), Error> {
        let answer = self.call(Cmd::Why, &|w| w.u32(Attr::Pid, pid)).await?;
        verdict(Cmd::Why, &answer)
    }

    /// Drops a migration this node was preparing to receive.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cancel(&self, token: u64) -> Result<(), Error> {
        self.call(Cmd::Cancel, &|w| w.u64(Attr::Token, token))
            .await
            .map(drop)
    }

    /// The module's counters, by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn stats(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let command = Cmd::Stat;
        let answer = self.call(command, &|_| Ok(())).await?;
        let values = Attrs::parse(&answer)
            .and_then(|a| a.bytes(Attr::Stats))
            .map_err(|what| Error::Protocol { command, what })?;
        let values = values.as_chunks().0.iter().copied().map(u64::from_le_bytes);
        Ok(uapi::STATS.into_iter().zip(values).collect())
    }

    /// All processes that are away, guests, or moving.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn processes(&self) -> Result<Vec<ProcRecord>, Error> {
        let mut all: Vec<ProcRecord> = Vec::new();
        while all.len() < MAX_PROCESSES {
            let more = self
                .processes_above(all.last().map_or(0, |r| r.pid.get()))
                .await?;
            if more.is_empty() {
                break;
            }
            all.extend(more);
        }
        Ok(all)
    }

    /// The record of one process, if it is away, a guest, or moving.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn process(&self, pid: u32) -> Result<Option<ProcRecord>, Error> {
        let above = self.processes_above(pid.saturating_sub(1)).await?;
        Ok(above.into_iter().find(|r| r.pid.get() == pid))
    }

    /// The next records with numbers above `pid`, in order.
    async fn processes_above(&self, pid: u32) -> Result<Vec<ProcRecord>, Error> {
        let command = Cmd::Ps;
        let answer = self.call(command, &|w| w.u32(Attr::Pid, pid)).await?;
        let wrong = |what| Error::Protocol { command, what };
        let attrs = Attrs::parse(&answer).map_err(wrong)?;
        let records = attrs.get(Attr::Procs).unwrap_or_default();
        let records =
            <[ProcRecord]>::ref_from_bytes(records).map_err(|_| wrong(uapi::Error::Malformed))?;
        // Only what lies above counts, so that a list without end ends.
        let mut last = pid;
        Ok(records
            .iter()
            .filter(|r| {
                let before = last;
                last = last.max(r.pid.get());
                last > before
            })
            .copied()
            .collect())
    }
}

/// The refusal in an answer, if there is one.
fn refusal(attrs: Attrs<'_>) -> Option<Refusal> {
    let reason = Reason::from_u32(attrs.u32(Attr::Reason).ok()?).unwrap_or(Reason::TargetRefused);
    let text = String::from_utf8_lossy(attrs.get(Attr::Text).unwrap_or_default()).into_owned();
    let detail = attrs.u64(Attr::Detail).unwrap_or(0);
    (reason != Reason::None).then(|| Refusal {
        detail,
        ..Refusal::new(reason, text)
    })
}

fn verdict(command: Cmd, answer: &[u8]) -> Result<(), Error> {
    let attrs = Attrs::parse(answer).map_err(|what| Error::Protocol { command, what })?;
    refusal(attrs).map_or(Ok(()), |r| Err(Error::Refused(r)))
}

/// Reads events until nobody wants them.
fn listen(mut events: Events, sender: &mpsc::Sender<Event>) {
    loop {
        let heard = match events.wait() {
            Ok(heard) => heard,
            Err(e) => {
                tracing::error!("events of the module: {e}");
                std::thread::sleep(Duration::from_secs(1));
                vec![Heard::Lost]
            }
        };
        for heard in heard {
            let event = match heard {
                Heard::Lost => Event::Lost,
                Heard::Message(m) => match event(m.cmd, &m.payload) {
                    Ok(Some(event)) => event,
                    Ok(None) => continue,
                    Err(e) => {
                        tracing::warn!(cmd = m.cmd, "event of the module does not fit: {e:?}");
                        continue;
                    }
                },
            };
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    }
}

/// Understands an event; `None` for one that is not for us.
pub(crate) fn event(cmd: u8, payload: &[u8]) -> Result<Option<Event>, uapi::Error> {
    let attrs = Attrs::parse(payload)?;
    let class = || Class::from_u32(attrs.u32(Attr::Class)?).ok_or(uapi::Error::Malformed);
    let report =
        || Report::read_from_bytes(attrs.bytes(Attr::Report)?).map_err(|_| uapi::Error::Malformed);
    Ok(Some(match Cmd::from_u8(cmd) {
        Some(Cmd::LinkDown) => Event::LinkDown {
            peer: attrs.node(Attr::Peer)?,
            class: class()?,
            errno: attrs.u32(Attr::Errno).unwrap_or(0),
        },
        Some(Cmd::Renew) => Event::Renew {
            peer: attrs.node(Attr::Peer)?,
            class: class()?,
        },
        Some(Cmd::Migrated) => {
            let errno = attrs.u32(Attr::Errno)?;
            let outcome = if errno == 0 {
                Ok(report()?)
            } else {
                let number = i32::try_from(errno).unwrap_or(i32::MAX);
                let why = || std::io::Error::from_raw_os_error(number).to_string();
                let mut refusal = refusal(attrs)
                    .unwrap_or_else(|| Refusal::new(Reason::TargetLost, String::new()));
                if refusal.text.is_empty() {
                    refusal.text = why();
                }
                Err(refusal)
            };
            Event::Migrated {
                token: attrs.u64(Attr::Token)?,
                outcome,
            }
        }
        Some(Cmd::Filled) => Event::Filled {
            token: attrs.u64(Attr::Token)?,
            report: report()?,
        },
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests;
