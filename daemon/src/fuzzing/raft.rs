// SPDX-License-Identifier: MIT OR Apache-2.0

//! Messages of those who agree, from an authenticated node that does not keep to the rules.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{node, scratch};
use crate::agree::carrier::{Asked, Carrier, NoAnswer};
use crate::agree::{self, Agreement, Role, Timing};
use crate::core::state::State;

/// Most messages of one run.
const MAX_MESSAGES: usize = 32;
/// Longest wait for an answer, by a clock that does not wait.
const ANSWER_IN: Duration = Duration::from_secs(60);

/// A question, and the answer of a node that does not take part any more.
const READ_INDEX: &[u8] = b"\"read-index\"";
const STOPPED: &[u8] = b"{\"refused\":\"stopped\"}";

/// Brings nothing anywhere.
pub(super) struct Cut;

impl Carrier for Cut {
    fn ask(&self, _: ssi::id::NodeId, _: Vec<u8>) -> Asked<'_> {
        Box::pin(async { Err(NoAnswer::NotSent) })
    }
}

/// Messages to a node that has just founded a cluster, or, if the first byte is `-`, to one that has
/// not: as JSON, one a line, each behind the digit of the node that sends it, another one; or, if the next byte is
/// `#`, each of eight bytes (see [`made`]). Every one is answered, the node goes on to take part, and
/// what it has on its disk can be read again.
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
    agree::begin(dir.path(), node(1)).expect("new files");
    let open = || Agreement::open(dir.path(), node(1), Arc::new(Cut), Timing::default());
    runtime.block_on(async {
        let agreement = open().await.expect("a new one");
        if founds {
            agreement.found().await.expect("a cluster of one");
        }
        for (digit, message) in messages(data) {
            let from = node(u16::from(digit.wrapping_sub(b'2') % 7) + 2);
            let answer = timeout(ANSWER_IN, agreement.serve(from, &message)).await;
            assert!(!answer.expect("an answer in time").is_empty());
        }
        lives(&agreement).await;
        agreement.stop().await;
        drop(agreement);
        let again = open().await.expect("what was written is read");
        lives(&again).await;
        again.stop().await;
    });
}

/// The node does by itself what it has to do, and still answers.
async fn lives(agreement: &Agreement) {
    sleep(Duration::from_secs(10)).await;
    assert_ne!(agreement.status().role, Role::Stopped);
    // A task of the library that panicked is only told of to who asks it something.
    let asked = timeout(ANSWER_IN, agreement.serve(node(2), READ_INDEX)).await;
    assert_ne!(asked.expect("an answer in time"), STOPPED);
}

/// The messages, each with the digit of its node.
fn messages(data: &[u8]) -> Vec<(u8, Vec<u8>)> {
    if let Some(data) = data.strip_prefix(b"#") {
        let all = data.as_chunks().0.iter().take(MAX_MESSAGES);
        return all.map(made).collect();
    }
    let lines = data.split(|b| *b == b'\n').take(MAX_MESSAGES);
    let all = lines.filter_map(<[u8]>::split_first);
    all.map(|(digit, message)| (*digit, message.to_vec()))
        .collect()
}

/// A message of the right form, with small numbers and some that are too large.
fn made(bytes: &[u8; 8]) -> (u8, Vec<u8>) {
    let [kind, digit, term, prev_term, prev, many, entry_term, commit] = *bytes;
    let number = |byte: u8| match byte {
        0xff => u64::MAX,
        0xfe => 1 << 62,
        _ => u64::from(byte % 8),
    };
    // Nobody is listened to who speaks for another.
    let by = u64::from(digit.wrapping_sub(b'2') % 7) + 2;
    let id = |term: u8, index: u64| match term {
        0 => Value::Null,
        _ => json!({"leader_id": number(term), "index": index}),
    };
    let vote = |committed: bool| json!({"leader_id": {"term": number(term), "voted_for": by}, "committed": committed});
    let last = id(prev_term, number(prev));
    let message = match kind % 6 {
        0 | 1 => {
            let first = if last.is_null() {
                0
            } else {
                number(prev).saturating_add(1)
            };
            let entries = (0..u64::from(many % 4)).map(|i| {
                let payload = match kind % 5 {
                    0 => json!({"Normal": {"kv": {"put": {"name": "a", "text": "b"}}}}),
                    1 => json!({"Membership": {"configs": [[1, by]], "nodes": {"1": {}, (by.to_string()): {}}}}),
                    2 => json!({"Membership": {"configs": [[by]], "nodes": {(by.to_string()): {}}}}),
                    _ => json!("Blank"),
                };
                json!({"log_id": id(entry_term.max(1), first.saturating_add(i)), "payload": payload})
            });
            json!({"append": {"has_majority": false, "rpc": {
                "vote": vote(true), "prev_log_id": last, "entries": entries.collect::<Vec<_>>(),
                "leader_commit": id(entry_term, number(commit)),
            }}})
        }
        2 => {
            json!({"vote": {"vote": vote(false), "last_log_id": last, "leadership_transfer": many % 2 == 0}})
        }
        3 => json!({"pre-vote": {"vote": vote(false), "last_log_id": last}}),
        4 => json!({"snapshot": {
            "vote": vote(true), "state": State::default(),
            "meta": {"last_log_id": last, "last_membership": {
                "log_id": id(entry_term, number(commit)),
                "membership": {"configs": [[1, by]], "nodes": {"1": {}, (by.to_string()): {}}},
            }},
        }}),
        _ => json!({"transfer": {
            "from_leader": vote(true), "to_node_id": number(many), "last_log_id": last,
        }}),
    };
    (digit, message.to_string().into_bytes())
}
