// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls of a local user who may do nothing but ask.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::machine::{DONE_IN, Node, alone, say};
use super::scratch;
use crate::core::state::State;
use crate::serve;
use crate::stage::Stage;
use crate::user::User;
use crate::varlink::{Call, Frames, MAX_CALL_BYTES, Reply};

/// Nobody.
const USER: User = User {
    uid: 65_534,
    is_admin: false,
};
/// So long a user of a node listens: it answers what it does not wait for.
const LISTENS: Duration = Duration::from_millis(300);
/// Longest reply to such a user: the description of the interface is in it, or all of the call.
const MAX_REPLY_BYTES: usize = 4 * MAX_CALL_BYTES;

/// What the user writes before he closes that side, to a machine in no cluster or, behind a `+`, to the only node of
/// one. There is a reply to each call that wants one, and nothing changes that is not his.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    if let Some(data) = data.strip_prefix(b"+") {
        return Node::with(|node| {
            let before = agreed(node);
            let replies = node
                .runtime
                .block_on(talk(&node.stage, data, Some(LISTENS)));
            assert_eq!(agreed(node), before);
            judge(data, replies, true);
        });
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = scratch();
    let replies = runtime.block_on(async {
        let stage = alone(dir.path());
        let replies = talk(&stage, data, None).await;
        assert!(stage.cluster().is_err());
        replies
    });
    judge(data, replies, false);
}

/// What is agreed on but for locks, which a user may have.
fn agreed(node: &Node) -> State {
    let mut state = node.agreed();
    let name = format!("u{}/", USER.uid);
    let theirs = state
        .locks
        .locks()
        .keys()
        .all(|lock| lock.starts_with(&name));
    assert!(theirs, "somebody else's lock");
    state.locks = Arc::default();
    state
}

/// Says it all, and hears until the end, or for so long: who watches is told as long as he listens. Closed with calls
/// unread, the kernel says so and no more.
async fn talk(stage: &Arc<Stage>, data: &[u8], listens: Option<Duration>) -> io::Result<Vec<u8>> {
    let (mut ours, theirs) = UnixStream::pair().expect("sockets");
    let server = tokio::spawn(serve::converse(theirs, Arc::clone(stage), USER));
    let mut replies = Vec::new();
    let talk = say(&mut ours, data, &mut replies);
    let heard = match listens {
        None => timeout(DONE_IN, talk).await.expect("an end in time"),
        Some(listens) => timeout(listens, talk).await.unwrap_or(Ok(())),
    };
    drop(ours);
    drop(timeout(DONE_IN, server).await.expect("an end in time"));
    heard.map(|()| replies)
}

/// There is a reply to each call that wants one; a node has more than one for those who want more.
fn judge(data: &[u8], replies: io::Result<Vec<u8>>, is_node: bool) {
    let Ok(replies) = replies else { return };
    let (calls, wanted) = calls(data);
    let mut frames = Frames::new(MAX_REPLY_BYTES);
    frames.push(&replies);
    let mut seen = 0;
    while let Some(reply) = frames.take::<Reply>().expect("a reply") {
        assert!(reply.parameters.is_some() && (is_node || reply.continues.is_none()));
        seen += usize::from(reply.continues != Some(true));
    }
    // Who has hung up is not told any more what he waited for.
    let all = if is_node {
        seen <= wanted
    } else {
        seen == wanted
    };
    assert!(
        all,
        "{seen} replies to {calls} calls, of which {wanted} want one"
    );
}

/// How many calls there are until one cannot be read, and how many want a reply.
fn calls(data: &[u8]) -> (usize, usize) {
    let mut frames = Frames::new(MAX_CALL_BYTES);
    frames.push(data);
    let (mut calls, mut wanted) = (0, 0);
    while let Ok(Some(call)) = frames.take::<Call>() {
        calls += 1;
        wanted += usize::from(call.oneway != Some(true));
    }
    (calls, wanted)
}
