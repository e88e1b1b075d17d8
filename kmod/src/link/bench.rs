// SPDX-License-Identifier: GPL-2.0-only

//! Lets a test that speaks for a peer make this side send frames. Only in builds with `SSI_BENCH`,
//! which are not for use.

use super::{send, wait_room, Urgency};
use crate::id::NodeId;
use crate::sys::work;
use crate::wire::{Class, Kind, MAX_PAYLOAD_BYTES};
use kernel::prelude::*;

/// Handles a frame that a test has sent. False for all others.
///
/// - A signal `echo...` comes back as it is, at once.
/// - A signal `bulk`, a count and a length makes so many frames of pages of that length, as bulk,
///   each beginning with its number.
/// - A signal `kick` and the number of a node has a frame go back and forth to that node for ever.
pub(super) fn takes(peer: NodeId, class: Class, kind: Kind, payload: &[u8]) -> bool {
    if kind != Kind::Signal {
        return false;
    }
    let r = match payload {
        [b'e', b'c', b'h', b'o', ..] => echo(peer, class, payload),
        [b'b', b'u', b'l', b'k', a, b, c, d, e, f, g, h] => {
            let n = u32::from_le_bytes([*a, *b, *c, *d]);
            let len = u32::from_le_bytes([*e, *f, *g, *h]);
            work::spawn(c"bulk", move || {
                if let Err(e) = bulk(peer, class, n, len as usize) {
                    pr_info!("bulk to {} ended with {}\n", peer, e.to_errno());
                }
            })
        }
        [b'k', b'i', b'c', b'k', n] => NodeId::new((*n).into())
            .ok_or(EINVAL)
            .and_then(|to| echo(to, class, b"echo")),
        _ => return false,
    };
    if let Err(e) = r {
        pr_err!("bench: {}\n", e.to_errno());
    }
    true
}

fn echo(peer: NodeId, class: Class, payload: &[u8]) -> Result {
    let mut v = KVVec::with_capacity(payload.len(), GFP_KERNEL)?;
    v.extend_from_slice(payload, GFP_KERNEL)?;
    send(peer, class, Kind::Signal, v, Urgency::Now)
}

fn bulk(peer: NodeId, class: Class, n: u32, len: usize) -> Result {
    if !(4..=MAX_PAYLOAD_BYTES).contains(&len) {
        return Err(EINVAL);
    }
    for i in 0..n {
        let mut v = KVVec::from_elem(0u8, len, GFP_KERNEL)?;
        v[..4].copy_from_slice(&i.to_le_bytes());
        wait_room(peer, class)?;
        send(peer, class, Kind::Pages, v, Urgency::Bulk)?;
    }
    Ok(())
}
