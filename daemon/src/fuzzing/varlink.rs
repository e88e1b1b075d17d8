// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls of a local user who may do nothing but ask.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::scratch;
use crate::agree::Timing;
use crate::audit::Audit;
use crate::config::Config;
use crate::core::facts::Facts;
use crate::netlink;
use crate::seat::Store;
use crate::serve;
use crate::stage::{Equipment, Stage};
use crate::stub::Stubs;
use crate::user::User;
use crate::varlink::{Call, Frames, MAX_CALL_BYTES, Reply};

/// Nobody.
const USER: User = User {
    uid: 65_534,
    is_admin: false,
};
/// Longest wait for the end of a conversation.
const DONE_IN: Duration = Duration::from_secs(20);
/// Longest reply to such a user: the description of the interface is in it, or all of the call.
const MAX_REPLY_BYTES: usize = 4 * MAX_CALL_BYTES;

/// What the user writes before he closes that side. There is a reply to each call that wants one, and
/// nothing changes.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let (calls, wanted) = calls(data);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let dir = scratch();
    let replies = runtime.block_on(async {
        let stage = stage(dir.path());
        let (mut ours, theirs) = UnixStream::pair().expect("sockets");
        let server = tokio::spawn(serve::converse(theirs, Arc::clone(&stage), USER));
        let (mut read, mut write) = ours.split();
        let talk = async {
            let mut replies = Vec::new();
            let ask = async {
                // Its end may close before all is said.
                let _ = write.write_all(data).await;
                let _ = write.shutdown().await;
            };
            let (_, heard) = tokio::join!(ask, read.read_to_end(&mut replies));
            heard.map(|_| replies)
        };
        let replies = timeout(DONE_IN, talk).await.expect("an end in time");
        drop(timeout(DONE_IN, server).await.expect("an end in time"));
        assert!(stage.cluster().is_err());
        replies
    });
    // Closed with calls unread, the kernel says so and no more.
    let Ok(replies) = replies else { return };
    let mut frames = Frames::new(MAX_REPLY_BYTES);
    frames.push(&replies);
    let mut seen = 0;
    while let Some(reply) = frames.take::<Reply>().expect("a reply") {
        assert!(reply.parameters.is_some() && reply.continues.is_none());
        seen += 1;
    }
    assert_eq!(seen, wanted, "replies to {calls} calls");
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

/// A machine in no cluster.
fn stage(dir: &Path) -> Arc<Stage> {
    let config = Config::parse(dir, "").expect("all has a default");
    let equipment = Equipment {
        stubs: Arc::new(Stubs::new("/dev/null").expect("a stub")),
        audit: Arc::new(Audit::open(&dir.join("audit"), 0).expect("a log")),
        facts: Facts::default(),
        open_module: Box::new(|_| {
            let missing = netlink::Error::NoFamily("ssi".to_owned());
            Box::pin(async { Err(crate::kmod::Error::NotLoaded(missing)) })
        }),
        timing: Timing::default(),
        sockets: Mutex::default(),
    };
    let store = Store::open(&dir.join("state")).expect("a directory");
    Stage::new(Arc::new(config), store, equipment)
}
