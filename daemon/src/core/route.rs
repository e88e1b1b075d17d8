// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which node to ask about a process.

use ssi::id::NodeId;
use ssi::uapi::{ProcRecord, STATE_AWAY};

/// How often a request may be passed on: to the home, to the node it names, and once more for each
/// move meanwhile.
pub const MAX_HOPS: u32 = 4;

/// Where a process is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It runs here.
    Here,
    /// Ask that node.
    Node(NodeId),
    /// It is there, but older than the module.
    TooOld,
    /// It is not there.
    Nowhere,
}

/// Where process `pid` is dealt with, as node `own` sees it: `record` is what its module says of
/// it, `exists` tells whether this kernel has a process with a given number.
pub fn route(
    own: NodeId,
    pid: u32,
    record: Option<&ProcRecord>,
    exists: impl Fn(u32) -> bool,
) -> Route {
    if let Some(record) = record {
        return match (record.state.get(), NodeId::new(record.node.get())) {
            (STATE_AWAY, Some(node)) if node != own => Route::Node(node),
            _ => Route::Here,
        };
    }
    let old = |local: u32| {
        if exists(local) {
            Route::TooOld
        } else {
            Route::Nowhere
        }
    };
    match NodeId::of_pid(pid) {
        Some(node) if node != own => Route::Node(node),
        Some(_) if own.allocates(pid) => {
            if exists(pid) {
                Route::Here
            } else {
                Route::Nowhere
            }
        }
        // An alias: the number it has here is what remains without the node.
        Some(_) => old(pid & ((1 << ssi::id::PID_BITS) - 1)),
        None => old(pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ssi::uapi::{STATE_GUEST, STATE_MOVING};
    use zerocopy::FromBytes;

    fn record(state: u16, node: u16) -> ProcRecord {
        let mut r = ProcRecord::read_from_bytes(&[0; size_of::<ProcRecord>()]).unwrap();
        r.state.set(state);
        r.node.set(node);
        r
    }

    #[test]
    fn every_number_has_a_place() {
        let own = NodeId::new(2).unwrap();
        let first = own.first_pid();
        let n3 = NodeId::new(3).unwrap();
        let yes = |_| true;
        let no = |_| false;
        assert_eq!(route(own, first, None, yes), Route::Here);
        assert_eq!(route(own, first, None, no), Route::Nowhere);
        assert_eq!(route(own, n3.first_pid(), None, no), Route::Node(n3));
        assert_eq!(route(own, 1, None, yes), Route::TooOld);
        assert_eq!(route(own, 1, None, no), Route::Nowhere);
        assert_eq!(
            route(own, 2 * 131_072 + 17, None, |p| p == 17),
            Route::TooOld
        );
        assert_eq!(route(own, u32::MAX, None, no), Route::Nowhere);
        assert_eq!(route(own, 0, None, no), Route::Nowhere);
    }

    #[test]
    fn the_module_knows_better() {
        let own = NodeId::new(2).unwrap();
        let n3 = NodeId::new(3).unwrap();
        let first = own.first_pid();
        let yes = |_| true;
        assert_eq!(
            route(own, first, Some(&record(STATE_AWAY, 3)), yes),
            Route::Node(n3)
        );
        assert_eq!(
            route(own, first, Some(&record(STATE_MOVING, 3)), yes),
            Route::Here
        );
        assert_eq!(
            route(own, n3.first_pid(), Some(&record(STATE_GUEST, 2)), yes),
            Route::Here
        );
        // A record that makes no sense leads nowhere else.
        assert_eq!(
            route(own, first, Some(&record(STATE_AWAY, 0)), yes),
            Route::Here
        );
    }
}
