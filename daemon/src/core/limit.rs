// SPDX-License-Identifier: MIT OR Apache-2.0

//! How often something may happen that others can make happen: a token bucket (Turner, "New
//! Directions in Communications", 1986).

/// A bucket that holds some tokens and gets new ones at a steady pace.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    most: u32,
    every_ms: u64,
    left: u32,
    filled_ms: u64,
}

impl Limit {
    /// Full, with room for `most` tokens, one more of which comes `every_ms` milliseconds.
    pub fn new(most: u32, every_ms: u64) -> Self {
        Self {
            most,
            every_ms: every_ms.max(1),
            left: most,
            filled_ms: 0,
        }
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now_ms: u64) -> bool {
        let came = now_ms.saturating_sub(self.filled_ms) / self.every_ms;
        let left = u64::from(self.left).saturating_add(came);
        if left >= self.most.into() {
            self.left = self.most;
            self.filled_ms = now_ms.max(self.filled_ms);
        } else {
            self.left = u32::try_from(left).unwrap_or(self.most);
            self.filled_ms += came * self.every_ms;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_pace() {
        let mut limit = Limit::new(5, 100);
        assert_eq!((0..20).filter(|_| limit.take(1000)).count(), 5);
        assert!(!limit.take(1099));
        assert!(limit.take(1100));
        assert!(!limit.take(1199));
        assert_eq!((1200..2200).filter(|t| limit.take(*t)).count(), 10);
        assert_eq!((0..20).filter(|_| limit.take(u64::MAX)).count(), 5);
        assert!(!limit.take(0), "a clock that goes back gives nothing");
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_burst_and_pace(steps in proptest::collection::vec(0_u64..300, 1..200)) {
            let mut limit = Limit::new(7, 50);
            let (mut now, mut taken) = (0, 0);
            for step in steps {
                now += step;
                taken += u64::from(limit.take(now));
                proptest::prop_assert!(taken <= 7 + now / 50);
            }
        }
    }
}
