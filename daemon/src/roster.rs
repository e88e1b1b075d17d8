// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is in the cluster, as far as this node knows, and the handles to the others. Nodes come and
//! go while everything runs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ssi::id::NodeId;

use crate::config::Node;
use crate::core::tie::{Tie, Ties};
use crate::peer::Peer;

/// One node, and the handle to it unless it is this one.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The node.
    pub node: Node,
    /// How to reach it; `None` for this node.
    pub peer: Option<Peer>,
}

/// The nodes of the cluster.
#[derive(Debug)]
pub struct Roster {
    own: NodeId,
    entries: RwLock<BTreeMap<NodeId, Entry>>,
    ties: Mutex<Ties>,
}

impl Entry {
    /// The word users see for what is thought of it.
    pub fn state_name(&self) -> &'static str {
        self.peer.as_ref().map_or("self", Peer::state_name)
    }
}

impl Roster {
    /// With this node alone.
    pub fn new(own: Node) -> Self {
        let id = own.id;
        let entry = Entry {
            node: own,
            peer: None,
        };
        Self {
            own: id,
            entries: RwLock::new(BTreeMap::from([(id, entry)])),
            ties: Mutex::new(Ties::new(id)),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<NodeId, Entry>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<NodeId, Entry>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node.
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// The node with this number.
    pub fn node(&self, id: NodeId) -> Option<Node> {
        self.read().get(&id).map(|e| e.node.clone())
    }

    /// The handle to another node.
    pub fn peer(&self, id: NodeId) -> Option<Peer> {
        self.read().get(&id)?.peer.clone()
    }

    /// The handles to all other nodes, in the order of their numbers.
    pub fn peers(&self) -> Vec<Peer> {
        self.read()
            .values()
            .filter_map(|e| e.peer.clone())
            .collect()
    }

    /// All nodes, in the order of their numbers.
    pub fn entries(&self) -> Vec<Entry> {
        self.read().values().cloned().collect()
    }

    /// The node meant by `2`, `n2` or its name.
    pub fn find(&self, text: &str) -> Option<NodeId> {
        let entries = self.read();
        if let Some(entry) = entries.values().find(|e| e.node.name == text) {
            return Some(entry.node.id);
        }
        let number = text.strip_prefix('n').unwrap_or(text);
        let id = NodeId::new(number.parse().ok()?)?;
        entries.contains_key(&id).then_some(id)
    }

    /// Whether a node is reached there.
    pub fn has_address(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.read()
            .values()
            .any(|e| e.node.addr.ip().to_canonical() == ip)
    }

    /// What ties this node to another.
    pub fn tie(&self, node: NodeId) -> Tie {
        self.with_ties(|ties| ties.to(node))
    }

    /// Looks at what ties this node to others, or changes it. The peers are not told.
    pub fn with_ties<T>(&self, look: impl FnOnce(&mut Ties) -> T) -> T {
        look(&mut self.ties.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another node is in. Returns false, and changes nothing, if it was.
    pub fn enter(&self, node: Node, peer: Peer) -> bool {
        let mut entries = self.write();
        if entries.contains_key(&node.id) {
            return false;
        }
        let peer = Some(peer);
        entries.insert(node.id, Entry { node, peer });
        true
    }

    /// Another node is out; returns the handle to it. This node stays.
    pub fn leave(&self, id: NodeId) -> Option<Peer> {
        if id == self.own {
            return None;
        }
        self.write().remove(&id)?.peer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::task::Waiting;

    fn node(id: u16, name: &str) -> Node {
        Node {
            id: NodeId::new(id).unwrap(),
            name: name.to_owned(),
            addr: ([10, 0, 0, 1], id).into(),
        }
    }

    fn enter(roster: &Roster, id: u16, name: &str) -> bool {
        let node = node(id, name);
        roster.enter(node.clone(), Waiting::new(node).handle())
    }

    #[test]
    fn nodes_come_and_go() {
        let roster = Roster::new(node(2, "two"));
        assert!(enter(&roster, 3, "three") && enter(&roster, 1, "n1"));
        assert!(!enter(&roster, 3, "another"));
        let ids = |r: &Roster| {
            r.entries()
                .iter()
                .map(|e| e.node.id.get())
                .collect::<Vec<_>>()
        };
        assert_eq!(ids(&roster), [1, 2, 3]);
        assert_eq!(roster.peers().len(), 2);
        let id = |n| NodeId::new(n).unwrap();
        assert!(roster.leave(id(3)).is_some() && roster.leave(id(3)).is_none());
        assert!(roster.leave(id(2)).is_none(), "this node does not go");
        assert_eq!(ids(&roster), [1, 2]);
        assert!(enter(&roster, 3, "again"));
    }

    #[test]
    fn names_and_numbers_mean_nodes() {
        let roster = Roster::new(node(2, "n2"));
        assert!(enter(&roster, 1, "one"));
        for (text, n) in [("2", 2), ("n2", 2), ("1", 1), ("n1", 1), ("one", 1)] {
            assert_eq!(roster.find(text).unwrap().get(), n, "{text}");
        }
        for text in ["3", "n0", "", "n", "two", "-1", "99999999"] {
            assert!(roster.find(text).is_none(), "{text}");
        }
    }
}
