// SPDX-License-Identifier: MIT OR Apache-2.0

//! What [`foca`] asks for: it has neither clock nor socket, so its timers and packets wait here.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::{Notification, Timer};

use super::packet::{Life, MAX_PACKET};

/// Most packets that wait to be sent. What is more is lost, as a network loses packets.
const MAX_SENDS: usize = 16_384;

/// Timers and packets of one node.
#[derive(Debug)]
pub struct Engine {
    /// The node's own time.
    pub now_ms: u64,
    /// Times its questions wait, in hundredths: 100 when the node is well.
    pub stretch: u64,
    /// Somebody changed.
    pub changed: bool,
    /// Those who did not answer.
    pub accused: Vec<Life>,
    timers: BTreeMap<(u64, u64), Timer<Life>>,
    serial: u64,
    sends: Vec<(u16, Vec<u8>)>,
}

impl Default for Engine {
    /// At the beginning of time, of a node that is well.
    fn default() -> Self {
        Self {
            now_ms: 0,
            stretch: 100,
            changed: false,
            accused: Vec::new(),
            timers: BTreeMap::new(),
            serial: 0,
            sends: Vec::new(),
        }
    }
}

impl Engine {
    /// When the first timer is due.
    pub fn due_ms(&self) -> Option<u64> {
        self.timers.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes a timer that is due.
    pub fn ring(&mut self) -> Option<Timer<Life>> {
        let first = self.timers.first_entry()?;
        (first.key().0 <= self.now_ms).then(|| first.remove())
    }

    /// How many timers there are.
    pub fn waiting(&self) -> usize {
        self.timers.len()
    }

    /// To be sent to the node with this number.
    pub fn send(&mut self, to: u16, bytes: Vec<u8>) {
        debug_assert!(bytes.len() <= MAX_PACKET);
        if self.sends.len() < MAX_SENDS {
            self.sends.push((to, bytes));
        }
    }

    /// Takes what is to be sent.
    pub fn take_sends(&mut self) -> Vec<(u16, Vec<u8>)> {
        std::mem::take(&mut self.sends)
    }
}

impl foca::Runtime<Life> for &mut Engine {
    fn notify(&mut self, _: Notification<'_, Life>) {
        self.changed = true;
    }

    fn send_to(&mut self, to: Life, data: &[u8]) {
        self.send(to.node(), data.to_vec());
    }

    fn submit_after(&mut self, timer: Timer<Life>, after: Duration) {
        let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let after_ms = match &timer {
            // How long it is suspected before it is down is decided by `Swim`, of all alike.
            Timer::ChangeSuspectToDown { member_id, .. } => {
                self.accused.push(*member_id);
                self.changed = true;
                return;
            }
            // Never forgotten as long as it is listed.
            Timer::RemoveDown(_) => return,
            Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } => {
                after_ms.saturating_mul(self.stretch) / 100
            }
            _ => after_ms,
        };
        let due_ms = self.now_ms.saturating_add(after_ms.max(1));
        self.serial += 1;
        self.timers.insert((due_ms, self.serial), timer);
    }
}
