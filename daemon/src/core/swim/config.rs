// SPDX-License-Identifier: MIT OR Apache-2.0

//! How long things take.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;

use super::packet::MAX_PACKET;
use super::watch::Times;

/// How often each piece of news is passed on. That a member does not get it: once in e^12.
const TOLD: NonZeroU8 = NonZeroU8::new(12).unwrap();
/// How many are asked to ask, and how many gossip goes to at once.
const FAN: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// Times, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// From one member asked at random to the next.
    pub probe_ms: u64,
    /// How members are watched.
    pub watch: Times,
    /// How long a suspect has to show that it lives.
    pub suspect_ms: u64,
    /// From one round of gossip to the next, while there is any.
    pub gossip_ms: u64,
    /// From one member that seems down to the next to which we announce ourselves.
    pub announce_ms: u64,
    /// Waking later than this is a pause.
    pub late_ms: u64,
}

/// A dead member is seen within this time, by default.
const SEEN_MS: u64 = 5_000;
/// Members are asked at least so often: by default, divided by this.
const SLOWEST: u64 = 2;

impl Default for Config {
    /// A dead member is seen within 5 s.
    fn default() -> Self {
        Self {
            probe_ms: 1_000,
            watch: Times {
                ask_ms: 500,
                direct_ms: 350,
                hurry_ms: 150,
                silent_ms: 1_000,
            },
            suspect_ms: 2_000,
            gossip_ms: 200,
            announce_ms: 1_000,
            late_ms: 100,
        }
    }
}

impl Config {
    /// A dead member is seen within `seen_ms`. Where there is more time than [`SLOWEST`] times the default,
    /// it is a suspect who has it.
    pub fn within(self, seen_ms: u64) -> Self {
        let asking_ms = seen_ms.min(SEEN_MS * SLOWEST);
        let by = |ms: u64| ms.saturating_mul(asking_ms) / SEEN_MS;
        Self {
            probe_ms: by(self.probe_ms),
            watch: Times {
                ask_ms: by(self.watch.ask_ms),
                direct_ms: by(self.watch.direct_ms),
                hurry_ms: by(self.watch.hurry_ms),
                silent_ms: by(self.watch.silent_ms),
            },
            suspect_ms: by(self.suspect_ms) + (seen_ms - asking_ms),
            gossip_ms: by(self.gossip_ms),
            announce_ms: by(self.announce_ms),
            late_ms: self.late_ms.max(by(self.late_ms)),
        }
    }

    /// As [`foca`] wants them.
    pub fn foca(&self) -> foca::Config {
        let ms = Duration::from_millis;
        foca::Config {
            probe_period: ms(self.probe_ms.max(2)),
            probe_rtt: ms(self.watch.direct_ms.clamp(1, self.probe_ms.max(2) - 1)),
            num_indirect_probes: FAN,
            max_transmissions: TOLD,
            suspect_to_down_after: ms(self.suspect_ms.max(1)),
            remove_down_after: None,
            max_packet_size: const { NonZeroUsize::new(MAX_PACKET).unwrap() },
            notify_down_members: true,
            periodic_announce: None,
            periodic_announce_to_down_members: None,
            periodic_gossip: Some(PeriodicParams {
                frequency: ms(self.gossip_ms.max(1)),
                num_members: FAN,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fits_into_the_time_there_is() {
        for seen_ms in [3_000, 5_000, 10_000, 60_000, 3_600_000] {
            let c = Config::default().within(seen_ms);
            let seen = c.watch.ask_ms + c.watch.silent_ms + c.suspect_ms + 3 * c.gossip_ms;
            assert!(seen < seen_ms, "{seen} of {seen_ms}");
            assert!(seen > seen_ms / 2, "{seen} of {seen_ms}");
            assert!(c.watch.ask_ms <= 1_000 && c.probe_ms <= 2_000 && c.announce_ms <= 2_000);
        }
    }
}
