// SPDX-License-Identifier: MIT OR Apache-2.0

//! Packets about who seems alive, of members that may lie.

use crate::core::swim::packet::Packet;
use crate::core::swim::{Config, MAX_PACKET, Member, Output, Seems, Swim};

/// Members, the first of which is attacked.
const MEMBERS: u16 = 6;
/// The epoch of each.
const EPOCH: u64 = 1;
/// Most packets of one run.
const MAX_PACKETS: usize = 64;
/// Most calls until a member has done all that is due.
const MAX_WAKES: usize = 10_000;

/// One packet after the other, each behind the time that passes before it in 10 ms, who sends it,
/// and its length in two bytes. Refused ones change nothing, nobody is down by word alone, and all
/// that is sent can be read.
///
/// # Panics
/// When the bytes do harm.
pub fn run(mut data: &[u8]) {
    whole(data);
    let of = |node| Member { node, epoch: EPOCH };
    let mut swim = Swim::new(of(1), 1, Config::default());
    let mut now_ms = 0;
    for n in 2..=MEMBERS {
        swim.list(now_ms, of(n)).expect("there is room");
    }
    for _ in 0..MAX_PACKETS {
        let Some(([wait, from, high, low], rest)) = data.split_first_chunk() else {
            break;
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (bytes, rest) = rest.split_at(length.min(rest.len()));
        data = rest;
        now_ms = pass(&mut swim, now_ms, u64::from(*wait) * 10);
        whole(bytes);
        let before: Vec<_> = swim.members().collect();
        let taken = swim.take(now_ms, u16::from(*from), bytes);
        let after: Vec<_> = swim.members().collect();
        assert!(taken.is_ok() || before == after);
        assert_eq!(before.len(), after.len());
        for output in outputs(&mut swim) {
            if let Output::Event { seems, .. } = output {
                assert_ne!(seems, Seems::Down, "by word alone");
            }
        }
    }
    pass(&mut swim, now_ms, 2_000);
}

/// Lets time pass, and does what is due meanwhile.
fn pass(swim: &mut Swim, now_ms: u64, wait_ms: u64) -> u64 {
    let until_ms = now_ms + wait_ms;
    let mut at_ms = now_ms;
    for _ in 0..MAX_WAKES {
        at_ms = at_ms.max(swim.due_ms());
        if at_ms > until_ms {
            return until_ms;
        }
        swim.wake(at_ms);
        outputs(swim);
    }
    panic!("it is never done: due at {} ms", swim.due_ms());
}

fn outputs(swim: &mut Swim) -> Vec<Output> {
    let all: Vec<Output> = swim.outputs().collect();
    assert!(all.len() <= 1_000, "{} at once", all.len());
    for output in &all {
        if let Output::Send { bytes, .. } = output {
            assert!(bytes.len() <= MAX_PACKET);
            assert!(Packet::decode(bytes).is_ok());
        }
    }
    all
}

/// A packet is all of its bytes.
fn whole(bytes: &[u8]) {
    if let Ok(packet) = Packet::decode(bytes) {
        assert_eq!(packet.encode().as_deref(), Ok(bytes));
    }
}
