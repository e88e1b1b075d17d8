// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Numbers with a meaning: nodes and cluster-wide process ids.
//!
//! Linux has 22 PID bits. The cluster gives the top five to the node, so every node allocates from
//! a range of its own and a process keeps its number wherever it runs.

use core::fmt;

/// Bits of a process id that count inside one node's range.
pub const PID_BITS: u32 = 17;
/// Numbers at the foot of each range kept for processes older than the module.
pub const ALIASES: u32 = 32_768;
/// Largest node id.
pub const MAX_NODE: u16 = 31;
/// Numbers at the top of each range that allocation does not enter on purpose: several
/// processors may each take one more number before the first wraps around.
pub const GUARD: u32 = 1_024;

/// One machine of the cluster, 1 to 31.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeId(u16);

impl NodeId {
    /// The node with this number, if it is one.
    pub const fn new(n: u16) -> Option<Self> {
        if n >= 1 && n <= MAX_NODE {
            Some(Self(n))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// First number this node gives to a new process.
    pub const fn first_pid(self) -> u32 {
        ((self.0 as u32) << PID_BITS) + ALIASES
    }

    /// First number that this node never gives to a new process by itself.
    pub const fn end_pid(self) -> u32 {
        ((self.0 as u32 + 1) << PID_BITS) - GUARD
    }

    /// The node in whose range `pid` lies.
    pub const fn of_pid(pid: u32) -> Option<Self> {
        let n = pid >> PID_BITS;
        if n <= MAX_NODE as u32 {
            Self::new(n as u16)
        } else {
            None
        }
    }

    /// Whether `pid` is a number this node allocates.
    pub const fn allocates(self, pid: u32) -> bool {
        pid >= self.first_pid() && pid < ((self.0 as u32 + 1) << PID_BITS)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_disjoint_and_below_the_kernel_limit() {
        let mut end = 0;
        for n in 1..=MAX_NODE {
            let node = NodeId::new(n).unwrap();
            assert!(node.first_pid() >= end);
            assert!(node.end_pid() > node.first_pid());
            end = node.end_pid();
            assert_eq!(NodeId::of_pid(node.first_pid()), Some(node));
            assert_eq!(NodeId::of_pid(end - 1), Some(node));
        }
        assert!(end < 4_194_304);
    }

    #[test]
    fn numbers_older_than_the_cluster_belong_to_nobody() {
        assert_eq!(NodeId::of_pid(1), None);
        assert_eq!(NodeId::of_pid(131_071), None);
        assert_eq!(NodeId::new(0), None);
        assert_eq!(NodeId::new(32), None);
    }
}
