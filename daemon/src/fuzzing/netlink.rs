// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the module says over netlink.

use std::sync::Arc;

use netlink_packet_core::NetlinkPayload;
use ssi::uapi::Cmd;

use crate::kmod::{self, Channel, Kmod};
use crate::msg::MAX_PROCESSES;
use crate::netlink;

/// A module that always answers the same.
#[derive(Debug)]
struct Says(Vec<u8>);

impl Channel for Says {
    fn request(&self, _: Cmd, _: Vec<u8>) -> Result<Vec<u8>, netlink::Error> {
        Ok(self.0.clone())
    }
}

/// Bytes as a datagram of events, and as the attributes of one event and of every answer.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    if let Ok(messages) = netlink::messages(data) {
        assert!(messages.len() <= data.len() / 16 + 1);
        for message in messages {
            if let NetlinkPayload::InnerMessage(m) = message.payload {
                let _ = kmod::event(m.cmd, &m.payload);
            }
        }
    }
    for cmd in 0..=u8::MAX {
        if Cmd::from_u8(cmd).is_some() {
            let _ = kmod::event(cmd, data);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let module = Kmod::with(Arc::new(Says(data.to_vec())));
        if let Ok(list) = module.processes().await {
            // One answer is taken as a whole.
            assert!(list.len() < MAX_PROCESSES + data.len());
            assert!(list.windows(2).all(|w| w[0].pid.get() < w[1].pid.get()));
        }
        let _ = (
            module.process(7).await,
            module.stats().await,
            module.why(7).await,
        );
    });
}
