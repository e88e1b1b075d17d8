// SPDX-License-Identifier: GPL-2.0-only

//! What ssid asks of the module, and what the module tells it.
//!
//! A Hello of another [`uapi::VERSION`] is answered with our versions alone and changes nothing, so that
//! ssid can name both, and ask before this is a node. Every other command is `ENXIO` before Hello.

use crate::id::NodeId;
use crate::pids::Range;
use crate::sys::genl::{self, Registration, Request};
use crate::sys::slot::Slot;
use crate::uapi::{self, Attr, Attrs, Cmd, FileId, Reason, Writer};
use crate::wire::{self, Class};
use crate::{link, mover, process, stat};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};
use kernel::sync::{new_mutex, Arc, Mutex};
use zerocopy::{FromBytes, IntoBytes};

/// Room for the attributes of an event, or of an answer without a list.
const SMALL_BYTES: usize = 512;
/// Most records in the answer to [`Cmd::Ps`].
const PS_RECORDS: usize = 512;

type Attributes = core::result::Result<(), uapi::Error>;

#[pin_data]
struct Control {
    incarnation: u64,
    #[pin]
    node: Mutex<Node>,
}

enum Node {
    /// Nobody has said Hello.
    Nameless,
    /// This is node `me`.
    Named { me: NodeId, _range: Range },
    /// The module goes.
    Closed,
}

static CONTROL: Slot<Control> = Slot::new();
/// Events that were lost for lack of memory.
static LOST: Atomic<u64> = Atomic::new(0);

/// Takes commands until it is dropped. Ends all links then.
pub struct Service {
    // Last: nothing is announced any more when the family goes.
    _family: Registration,
}

impl Service {
    /// Begins to take commands.
    ///
    /// # Errors
    /// Those of [`genl::register`]; `EBUSY` when there is a service.
    pub fn start(module: &'static ThisModule) -> Result<Self> {
        let control = Arc::pin_init(
            pin_init!(Control {
                incarnation: crate::sys::work::random_nonzero(),
                node <- new_mutex!(Node::Nameless),
            }),
            GFP_KERNEL,
        )?;
        CONTROL.put(control)?;
        match genl::register(module) {
            Ok(family) => Ok(Self { _family: family }),
            Err(e) => {
                drop(CONTROL.take());
                Err(e)
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let control = CONTROL.take();
        // Waits for a Hello that is being handled; the next finds it closed.
        let node = control
            .as_ref()
            .map(|c| core::mem::replace(&mut *c.node.lock(), Node::Closed));
        link::stop();
        drop(node);
    }
}

impl From<uapi::Error> for Error {
    fn from(e: uapi::Error) -> Self {
        match e {
            uapi::Error::Malformed | uapi::Error::Missing(_) => EINVAL,
            uapi::Error::Full => EMSGSIZE,
        }
    }
}

/// Tells ssid something. Sleeps, but never waits for ssid. An event that nobody listens to is gone
/// and no error.
///
/// # Errors
/// `ENOMEM`, `ENOBUFS`, `EMSGSIZE`: the event is lost, which is counted and logged here.
pub fn event(cmd: Cmd, attributes: impl FnOnce(&mut Writer<'_>) -> Attributes) -> Result {
    let mut buf = [0; SMALL_BYTES];
    let mut w = Writer::new(&mut buf);
    let r = attributes(&mut w).map_err(Error::from);
    r.and_then(|()| genl::multicast(cmd as u8, w.finish()).map(|_| ()))
        .inspect_err(|e| {
            let lost = LOST.fetch_add(1, Relaxed).wrapping_add(1);
            if lost.is_power_of_two() {
                pr_err!(
                    "event {:?} is lost: error {} ({} so far)\n",
                    cmd,
                    e.to_errno(),
                    lost
                );
            }
        })
}

fn answer(req: &Request<'_>, attributes: impl FnOnce(&mut Writer<'_>) -> Attributes) -> Result {
    let mut buf = [0; SMALL_BYTES];
    let mut w = Writer::new(&mut buf);
    attributes(&mut w)?;
    req.answer(w.finish())
}

/// Handles one request, in the task of who sent it.
///
/// # Errors
/// What the asker gets as its errno.
pub fn handle(req: &Request<'_>) -> Result {
    let control = CONTROL.get().ok_or(ESHUTDOWN)?;
    let cmd = Cmd::from_u8(req.command()).ok_or(EOPNOTSUPP)?;
    let a = Attrs::parse(req.attributes())?;
    if cmd == Cmd::Hello {
        return hello(&control, req, &a);
    }
    if link::self_node().is_none() {
        return Err(ENXIO);
    }
    match cmd {
        Cmd::Link => {
            let class = Class::from_u32(a.u32(Attr::Class)?).ok_or(EINVAL)?;
            let fd = i32::try_from(a.u32(Attr::Fd)?).map_err(|_| EBADF)?;
            link::attach(a.node(Attr::Peer)?, class, fd)?;
            req.answer(&[])
        }
        Cmd::Unlink => {
            link::detach(a.node(Attr::Peer)?)?;
            req.answer(&[])
        }
        Cmd::PeerDead => {
            link::declare_dead(a.node(Attr::Peer)?)?;
            req.answer(&[])
        }
        Cmd::Migrate => {
            let files = match a.get(Attr::Files) {
                Some(b) => <[FileId]>::ref_from_bytes(b).map_err(|_| EINVAL)?,
                None => &[],
            };
            let (pid, to) = (a.u32(Attr::Pid)?, a.node(Attr::Peer)?);
            verdict(req, &mover::migrate(pid, to, a.u64(Attr::Token)?, files)?)
        }
        Cmd::Why => verdict(req, &mover::why(a.u32(Attr::Pid)?)?),
        Cmd::Ps => {
            let after = if a.get(Attr::Pid).is_some() {
                a.u32(Attr::Pid)?
            } else {
                0
            };
            ps(req, after)
        }
        Cmd::Cancel => {
            mover::cancel(a.u64(Attr::Token)?)?;
            req.answer(&[])
        }
        Cmd::Stat => answer(req, |w| w.bytes(Attr::Stats, stat::all().as_bytes())),
        Cmd::Hello | Cmd::LinkDown | Cmd::Migrated | Cmd::Filled | Cmd::Renew => Err(EOPNOTSUPP),
    }
}

fn hello(control: &Control, req: &Request<'_>, a: &Attrs<'_>) -> Result {
    let (version, node) = (a.u32(Attr::Version)?, a.node(Attr::Node)?);
    if version != uapi::VERSION.into() {
        return answer(req, versions);
    }
    {
        let mut known = control.node.lock();
        match &*known {
            Node::Named { me, .. } if *me == node => {}
            Node::Named { .. } => return Err(EBUSY),
            Node::Closed => return Err(ESHUTDOWN),
            Node::Nameless => {
                let range = Range::claim(node)?;
                link::start(node, control.incarnation)?;
                *known = Node::Named {
                    me: node,
                    _range: range,
                };
                crate::node::set_me(node);
                pr_info!("this is {}\n", node);
            }
        }
    }
    answer(req, |w| {
        versions(w)?;
        w.u32(Attr::Node, node.get().into())?;
        w.u64(Attr::Incarnation, control.incarnation)
    })
}

fn versions(w: &mut Writer<'_>) -> Attributes {
    w.u32(Attr::Version, uapi::VERSION.into())?;
    w.u32(Attr::Wire, wire::VERSION.into())
}

fn verdict(req: &Request<'_>, v: &mover::Answer) -> Result {
    if v.reason == Reason::None {
        return req.answer(&[]);
    }
    answer(req, |w| {
        w.u32(Attr::Reason, v.reason as u32)?;
        w.u64(Attr::Detail, v.detail)?;
        w.bytes(Attr::Text, &v.text)
    })
}

fn ps(req: &Request<'_>, after: u32) -> Result {
    let records = process::list(after)?;
    let bytes = records.get(..PS_RECORDS).unwrap_or(&records).as_bytes();
    if bytes.is_empty() {
        return req.answer(&[]);
    }
    let mut buf = KVVec::from_elem(0u8, bytes.len() + SMALL_BYTES, GFP_KERNEL)?;
    let mut w = Writer::new(&mut buf);
    w.bytes(Attr::Procs, bytes)?;
    req.answer(w.finish())
}
