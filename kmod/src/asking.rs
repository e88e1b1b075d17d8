// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! How a process whose memory is elsewhere asks for it, and what that means for the pages that are
//! pushed to it meanwhile.
//!
//! One that needs a page now and then should not find both machines busy with a long train of others, so
//! little is pushed at a time while it asks. One that asks all the time needs everything, and the sooner
//! all is there the sooner it stops asking.

/// How long after a page was asked for another may be soon: a process that has to wait for its
/// turn, because of all that is pushed, has not stopped asking.
const SOON_NS: u64 = 200_000_000;
/// Over so long it is counted how often pages are asked for.
const WINDOW_NS: u64 = 200_000_000;
/// Requests in a window from which on a process needs everything. A beginner touches a dozen or two
/// of pages; whoever waits for pages and does nothing else asks a hundred times.
const ALL_THE_TIME: u32 = 48;

/// What is known of the requests for the memory of one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asking {
    last_ns: u64,
    window_ns: u64,
    count: u32,
    needs_all: bool,
}

impl Asking {
    /// A page was asked for.
    pub fn asked(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.window_ns) >= WINDOW_NS {
            self.window_ns = now_ns;
            self.count = 0;
        }
        self.last_ns = now_ns;
        self.count = self.count.saturating_add(1);
        self.needs_all |= self.count >= ALL_THE_TIME;
    }

    /// The process has just begun, and will ask in a moment.
    pub fn begin(&mut self, now_ns: u64) {
        self.last_ns = now_ns;
    }

    /// Whether what is pushed stands in the way of what is asked for now and then.
    pub fn now_and_then(&self, now_ns: u64) -> bool {
        !self.needs_all && now_ns.saturating_sub(self.last_ns) < SOON_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn one_that_does_not_ask_gets_all_at_once() {
        let mut a = Asking::default();
        a.begin(1000 * MS);
        assert!(a.now_and_then(1199 * MS));
        assert!(!a.now_and_then(1200 * MS));
    }

    #[test]
    fn one_that_asks_now_and_then_goes_first_for_as_long_as_it_asks() {
        let mut a = Asking::default();
        for t in (1000..61_000).step_by(10) {
            a.asked(t * MS);
            assert!(a.now_and_then((t + 9) * MS), "at {t} ms");
        }
        assert!(!a.now_and_then(62_000 * MS));
    }

    #[test]
    fn a_beginner_may_ask_in_a_burst() {
        let mut a = Asking::default();
        for t in 1000..1040 {
            a.asked(t * MS);
        }
        assert!(a.now_and_then(1100 * MS));
    }

    #[test]
    fn one_that_asks_all_the_time_gets_everything() {
        let mut a = Asking::default();
        for t in (1000..1400).step_by(3) {
            a.asked(t * MS);
        }
        assert!(!a.now_and_then(1400 * MS));
        // And keeps it, though what is pushed makes it ask less often.
        a.asked(3000 * MS);
        assert!(!a.now_and_then(3001 * MS));
    }
}
