// SPDX-License-Identifier: GPL-2.0-only

//! This node among the others: where frames go, and what the death of a node means.

use crate::id::NodeId;
use crate::link::{self, Urgency};
use crate::wire::{Class, Kind};
use crate::{files, mover, pager, process, source};
use kernel::prelude::*;
use kernel::sync::atomic::{Atomic, Relaxed};

/// This node's number, 0 while it has none.
static ME: Atomic<u32> = Atomic::new(0);

/// This node, once ssid has said which it is.
pub fn me() -> Option<NodeId> {
    u16::try_from(ME.load(Relaxed)).ok().and_then(NodeId::new)
}

/// Says which node this is.
pub fn set_me(me: NodeId) {
    ME.store(u32::from(me.get()), Relaxed);
}

/// Sends a small frame.
///
/// # Errors
/// `ENOTCONN` when the peer was never linked or is dead; `ENOMEM`.
pub fn say(to: NodeId, class: Class, kind: Kind, payload: &[u8]) -> Result {
    let mut v = KVVec::with_capacity(payload.len(), GFP_KERNEL)?;
    v.extend_from_slice(payload, GFP_KERNEL)?;
    link::send(to, class, kind, v, Urgency::Now)
}

/// A frame of the memory class or of bulk has arrived. Called by a link's receiver: what takes long is done elsewhere.
pub fn memory_frame(peer: NodeId, class: Class, kind: Kind, payload: &[u8]) {
    let r = match kind {
        Kind::PageRequest | Kind::PagesAll => source::frame(peer, kind, payload),
        _ => pager::frame(peer, class, kind, payload),
    };
    warn(peer, kind, r);
}

/// The same for the control class. The payload may be taken.
pub fn control_frame(peer: NodeId, kind: Kind, payload: &mut KVVec<u8>) {
    let r = match kind {
        Kind::Image
        | Kind::ImageMore
        | Kind::Ready
        | Kind::Commit
        | Kind::Committed
        | Kind::Abort => mover::frame(peer, kind, payload),
        Kind::FileOp | Kind::FileReply | Kind::FileCancel => {
            files::frame(peer, kind, core::mem::take(payload));
            Ok(())
        }
        _ => process::frame(peer, kind, payload),
    };
    warn(peer, kind, r);
}

fn warn(peer: NodeId, kind: Kind, r: Result) {
    if let Err(e) = r {
        pr_warn!("{:?} from n{} not taken: {:?}\n", kind, peer.get(), e);
    }
}

/// A node is dead. Called once for each death, before anything of its next life arrives.
pub fn peer_dead(peer: NodeId) {
    pr_info!("n{} is dead\n", peer.get());
    mover::peer_dead(peer);
    files::peer_dead(peer);
    process::peer_dead(peer);
}
