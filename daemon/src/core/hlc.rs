// SPDX-License-Identifier: MIT OR Apache-2.0

//! Times that put what happens on different nodes into an order: a hybrid logical clock ("Logical
//! Physical Clocks and Consistent Snapshots in Globally Distributed Databases", Kulkarni, Demirbas,
//! Madappa, Avva, Leone, 2014).
//!
//! What a node does after it heard of something has a later time than that, whatever the clocks of
//! the two say; and a time is never far from what the clock of its node says.

use std::str::FromStr;

/// A node whose clock is further ahead than this is not followed.
pub const MAX_AHEAD_MS: u64 = 10_000;
/// No clock of the kernel shows more: it counts nanoseconds since 1970 in 63 bits. A day more is left to what
/// was heard of others, and to counts that overflow.
const MAX_POSSIBLE_MS: u64 = 9_223_372_036_854 + 24 * 3600 * 1000;
/// Bits of the count of what happened within one millisecond.
const COUNT_BITS: u32 = 16;

/// A time. Later ones are greater, and no two of one node are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// As it goes over the wire.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// From the wire; any number is one.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> u64 {
        self.0 >> COUNT_BITS
    }
}

impl Stamp {
    /// Whether some clock could show it, however wrong it is set.
    pub fn is_possible(self) -> bool {
        self.ms() <= MAX_POSSIBLE_MS
    }
}

/// Milliseconds since 1970, and a count of those within one.
impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:05}", self.ms(), self.0 & ((1 << COUNT_BITS) - 1))
    }
}

impl FromStr for Stamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a time is two numbers with a dot between them";
        let (ms, count) = text.split_once('.').ok_or(WRONG)?;
        let ms: u64 = ms.parse().map_err(|_| WRONG)?;
        let count: u16 = count.parse().map_err(|_| WRONG)?;
        if ms >> (u64::BITS - COUNT_BITS) != 0 {
            return Err(WRONG);
        }
        Ok(Self(ms << COUNT_BITS | u64::from(count)))
    }
}

/// The clock of one node.
#[derive(Debug, Default)]
pub struct Clock {
    last: Stamp,
}

impl Clock {
    /// The time of what happens now, at `now_ms` by the clock on the wall.
    pub fn tick(&mut self, now_ms: u64) -> Stamp {
        let wall = Stamp(now_ms.min(u64::MAX >> COUNT_BITS) << COUNT_BITS);
        self.last = wall.max(Stamp(self.last.0.saturating_add(1)));
        self.last
    }

    /// Something was heard that happened at `heard`. Says whether it was believed: what is later than
    /// our own clock by more than [`MAX_AHEAD_MS`] is not.
    pub fn hear(&mut self, heard: Stamp, now_ms: u64) -> bool {
        let may = heard.ms() <= now_ms.saturating_add(MAX_AHEAD_MS);
        if may {
            self.last = self.last.max(heard);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_heard_is_before_what_follows() {
        let (mut a, mut b) = (Clock::default(), Clock::default());
        let said = a.tick(5_000);
        assert!(b.hear(said, 1_000), "b's clock is behind");
        let answered = b.tick(1_001);
        assert!(answered > said && answered.ms() == 5_000);
        assert!(a.hear(answered, 5_000) && a.tick(5_000) > answered);
        // The wall clock catches up.
        assert_eq!(b.tick(6_000).to_string(), "6000.00000");
        assert_eq!(b.tick(10).to_string(), "6000.00001");
    }

    #[test]
    fn a_clock_far_ahead_is_not_followed() {
        let mut clock = Clock::default();
        let last = clock.tick(1_000);
        for bits in [u64::MAX, (1_000 + MAX_AHEAD_MS + 1) << COUNT_BITS] {
            assert!(!clock.hear(Stamp::from_bits(bits), 1_000));
        }
        assert_eq!(clock.tick(1_000), Stamp(last.0 + 1));
        assert!(clock.hear(Stamp((1_000 + MAX_AHEAD_MS) << COUNT_BITS), 1_000));
    }

    #[test]
    fn a_clock_that_is_set_wrong_is_possible() {
        let mut clock = Clock::default();
        let last_ms = u64::try_from(i64::MAX / 1_000_000).unwrap();
        assert!(clock.tick(last_ms).is_possible() && clock.tick(0).is_possible());
        assert!(!Stamp::from_bits(u64::MAX).is_possible());
    }

    #[test]
    fn text_is_read_as_it_is_written() {
        for wrong in [
            "",
            ".",
            "1",
            "1.",
            "1.70000",
            "-1.0",
            "281474976710656.0",
            "1.2.3",
        ] {
            assert!(wrong.parse::<Stamp>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn times_only_grow(steps in prop::collection::vec((any::<u64>(), any::<bool>(), any::<u64>()), 1..50)) {
            let mut clock = Clock::default();
            let mut last = None;
            for (now_ms, hears, heard) in steps {
                let now_ms = now_ms >> 17;
                if hears {
                    clock.hear(Stamp::from_bits(heard), now_ms);
                }
                let time = clock.tick(now_ms);
                prop_assert!(Some(time) > last);
                prop_assert_eq!(time.to_string().parse(), Ok(time));
                last = Some(time);
            }
        }
    }
}
