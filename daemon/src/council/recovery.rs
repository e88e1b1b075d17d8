// SPDX-License-Identifier: MIT OR Apache-2.0

//! Going on without nodes that are lost for good, and with them the majority.

use std::collections::BTreeSet;

use ssi::id::NodeId;

use super::seal::sealed_authority;
use super::{Council, Error, SEALED_FOR};
use crate::agree::recovery::Estate;
use crate::clock::now_ms;
use crate::core::recovery::judge;
use crate::core::state::{Command, Refusal, State, Why};
use crate::failure::Failure;
use crate::pki::Seal;
use crate::seat::{Seat, Store};

impl Council {
    /// That this node may go on as the only voter, without `lost`.
    ///
    /// # Errors
    /// Why it may not.
    pub async fn may_go_on_without(&self, lost: &BTreeSet<NodeId>) -> Result<(), Failure> {
        let cluster = self.cluster()?;
        if self.status().has_majority {
            return Err(Failure::declined("has-majority", "a majority answers"));
        }
        // Until then others may run what is this node's, and this node what is theirs.
        if !cluster.is_fenced() {
            let text = format!(
                "this node is not fenced off yet: that takes {} s",
                self.fence_after.as_secs()
            );
            return Err(Failure::declined("not-fenced", text));
        }
        let state = self.state();
        judge(&state, self.own, lost, |node| self.is_up(&cluster, node))
            .map_err(|e| Failure::declined(e.code(), e.to_string()))?;
        let nodes = state.nodes.keys().copied();
        let left = nodes.filter(|node| *node != self.own && !lost.contains(node));
        match self.agreement.ahead(&left.collect()).await {
            None => Ok(()),
            Some(node) => Err(Failure::declined(
                "knows-less",
                format!("{node} knows more of what is agreed on than this node"),
            )),
        }
    }
}

/// Makes the node of `seat`, which does not run, the only voter of a cluster without `lost`.
///
/// # Errors
/// Why it is as before.
pub fn go_on_without(store: &Store, seat: &Seat, lost: &BTreeSet<NodeId>) -> Result<(), Error> {
    let estate = Estate::open(&store.agreed(), seat.node)?;
    let now_ms = now_ms();
    let gone = lost.iter().filter_map(|node| {
        Some(Command::Remove {
            node: *node,
            since: estate.state.nodes.get(node)?.epoch,
            why: Why::Removed,
            now_ms,
        })
    });
    let mut changes: Vec<Command> = gone.collect();
    changes.extend(next_authority(store, &estate.state)?);
    Ok(estate.take_over(changes)?)
}

/// Another authority, if this node cannot open the key of the present one: only voters can, and it may have been none.
fn next_authority(store: &Store, state: &State) -> Result<Option<Command>, Error> {
    let cluster = state.cluster.as_ref().ok_or(Refusal::NotFounded)?;
    let present = &cluster.authority;
    let seal = Seal::load(&store.seal());
    if seal.is_ok_and(|seal| seal.open(SEALED_FOR, &present.sealed_key).is_ok()) {
        return Ok(None);
    }
    let next = sealed_authority(&cluster.name)?;
    // If nothing comes of it, it opens nothing: it is not taken for one then, and the next try makes another.
    store.save_seal(&next.seal)?;
    Ok(Some(Command::ReplaceAuthority {
        generation: present.generation.saturating_add(1),
        ca: next.ca,
        sealed_key: next.sealed_key,
    }))
}
