// SPDX-License-Identifier: MIT OR Apache-2.0

//! Messages of those who agree, from an authenticated node that does not keep to the rules.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{node, scratch};
use crate::agree::carrier::{Asked, Carrier, NoAnswer};
use crate::agree::{Agreement, Role, Timing};

/// Most messages of one run.
const MAX_MESSAGES: usize = 32;
/// Longest wait for an answer, by a clock that does not wait.
const ANSWER_IN: Duration = Duration::from_secs(60);

/// Brings nothing anywhere.
pub(super) struct Cut;

impl Carrier for Cut {
    fn ask(&self, _: ssi::id::NodeId, _: Vec<u8>) -> Asked<'_> {
        Box::pin(async { Err(NoAnswer::NotSent) })
    }
}

/// Messages as JSON, one a line, each behind the digit of the node that sends it, to a node that has
/// just founded a cluster, or, if the first byte is `-`, to one that has not. Every one is answered,
/// the node goes on to take part, and what it has on its disk can be read again.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let (founds, data) = match data.strip_prefix(b"-") {
        Some(rest) => (false, rest),
        None => (true, data),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let dir = scratch();
    let open = || Agreement::open(dir.path(), node(1), Arc::new(Cut), Timing::default());
    runtime.block_on(async {
        let agreement = open().await.expect("a new one");
        if founds {
            agreement.found().await.expect("a cluster of one");
        }
        let lines = data.split(|b| *b == b'\n').take(MAX_MESSAGES);
        for (digit, message) in lines.filter_map(<[u8]>::split_first) {
            let from = node(u16::from(digit.wrapping_sub(b'1') % 8) + 1);
            let answer = timeout(ANSWER_IN, agreement.serve(from, message)).await;
            assert!(!answer.expect("an answer in time").is_empty());
        }
        // Time for whatever it does by itself then.
        sleep(Duration::from_secs(5)).await;
        assert_ne!(agreement.status().role, Role::Stopped);
        agreement.stop().await;
        drop(agreement);
        let again = open().await.expect("what was written is read");
        sleep(Duration::from_secs(5)).await;
        assert_ne!(again.status().role, Role::Stopped);
        again.stop().await;
    });
}
