// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a peer, or a machine that wants to join, sends once TLS stands.

use std::fmt::Debug;

use prost::Message;

use crate::core::facts;
use crate::failure::Failure;
use crate::msg::govern::{Admit, Hello};
use crate::msg::{self, Answer, Body, Call, Envelope, Preface, Reply, Request};

/// Longest text of a failure of another node that is shown here.
const MAX_SHOWN_BYTES: usize = 8 * 1024;

/// Bytes of a connection, as each of the messages it may begin with or consist of. What is
/// understood is the same after it is written and read again.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    read(data, |e: &Envelope| match &e.body {
        Some(Body::Reply(reply)) => answer(reply),
        Some(Body::Call(Call {
            request: Some(Request::Admit(admit)),
            ..
        })) => facts_of(admit.facts.as_ref()),
        _ => {}
    });
    read(data, |p: &Preface| facts_of(p.facts.as_ref()));
    read(data, |a: &Admit| facts_of(a.facts.as_ref()));
    read(data, answer);
    read(data, |_: &Hello| {});
}

fn read<M: Message + Default + PartialEq + Debug>(data: &[u8], look: impl Fn(&M)) {
    // In two parts, as it may arrive.
    let half = data.len() / 2;
    let mut arrived = data[..half].to_vec();
    let mut rest = Some(&data[half..]);
    loop {
        let before = arrived.len();
        match msg::decode::<M>(&mut arrived) {
            Ok(Some(message)) => {
                assert!(arrived.len() < before);
                look(&message);
                let mut again = Vec::new();
                if msg::encode(&message, &mut again).is_ok() {
                    let read = msg::decode::<M>(&mut again).expect("what was written is read");
                    assert_eq!(read.as_ref(), Some(&message));
                    assert!(again.is_empty());
                }
            }
            Ok(None) => match rest.take() {
                Some(rest) => arrived.extend_from_slice(rest),
                None => return,
            },
            Err(_) => return,
        }
    }
}

fn answer(reply: &Reply) {
    match &reply.answer {
        Some(Answer::Failed(failed)) => {
            let shown = Failure::from(failed.clone()).to_string();
            assert!(shown.len() <= MAX_SHOWN_BYTES, "{} bytes", shown.len());
        }
        Some(Answer::Seen(seen)) => seen.nodes.iter().for_each(|n| {
            let _ = msg::node(n.node);
        }),
        Some(Answer::Processes(p)) => p.processes.iter().for_each(|p| {
            let _ = p.place();
        }),
        _ => {}
    }
}

fn facts_of(facts: Option<&msg::Facts>) {
    let there: facts::Facts = facts.cloned().map(Into::into).unwrap_or_default();
    if there.make_sense() {
        let differences = facts::Facts::default().differ(&there);
        let shown: usize = differences.iter().map(|d| d.to_string().len()).sum();
        assert!(shown <= 2 * MAX_SHOWN_BYTES, "{shown} bytes");
    }
}
