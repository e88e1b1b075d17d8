// SPDX-License-Identifier: MIT OR Apache-2.0

//! What whoever reaches the port for monitoring says.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::machine::{Node, say};
use crate::metrics;

/// Longest wait for the end of a conversation.
const DONE_IN: Duration = Duration::from_secs(25);
/// Most that is answered.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// What is said to a node before that side is closed. It ends in time, and there is one answer or none.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let heard = Node::with(|node| node.runtime.block_on(talk(node, data)));
    let Ok(heard) = heard else { return };
    assert!(heard.len() <= MAX_ANSWER_BYTES);
    assert!(heard.is_empty() || heard.starts_with(b"HTTP/1."));
}

async fn talk(node: &Node, data: &[u8]) -> std::io::Result<Vec<u8>> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let server = tokio::spawn(metrics::connection(theirs, Arc::clone(&node.stage)));
    let mut heard = Vec::new();
    let talk = say(&mut ours, data, &mut heard);
    let said = timeout(DONE_IN, talk).await.expect("an end in time");
    drop(timeout(DONE_IN, server).await.expect("an end in time"));
    said.map(|()| heard)
}
