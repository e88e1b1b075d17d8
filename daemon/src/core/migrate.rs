// SPDX-License-Identifier: MIT OR Apache-2.0

//! The order of a migration at its source, and what a failure in each step asks for.
//!
//! The module decides what happens to the process; this decides whom to ask next and what to tell
//! the target when it will not arrive. The target is told to forget a migration only when it is
//! sure that the process stays, never on a guess: it might run there already.

use ssi::uapi::{Reason, Report};
use zerocopy::little_endian::U64;

use crate::failure::{Failure, Refusal};

/// How far a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The mapped files are read and compared.
    Reading,
    /// The target makes ready.
    Preparing,
    /// The process moves.
    Moving,
    /// It runs there; its memory follows.
    Filling,
    /// Over.
    Over,
}

impl Phase {
    /// The word users see.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Reading => "reading",
            Phase::Preparing => "preparing",
            Phase::Moving => "moving",
            Phase::Filling => "filling",
            Phase::Over => "over",
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The files were read.
    Read,
    /// The target is ready, or says why not.
    Prepared(Result<(), Failure>),
    /// The target did not answer; it may be ready or not.
    NotPrepared,
    /// The module began, or says why not.
    Begun(Result<(), Failure>),
    /// The module reports the end.
    Moved(Result<Report, Refusal>),
    /// The module reports that the memory is there.
    Filled(Report),
    /// An event may have been lost, or none came for long: last call if `.0`.
    Doubt(bool),
    /// Where the process was found after a doubt.
    Found(Place),
}

/// Where a process is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Here, not moving.
    Here,
    /// On its way.
    Moving,
    /// At the target.
    There,
    /// The module could not be asked.
    Unknown,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask the target to make ready.
    Prepare,
    /// Ask the module to move it.
    Move,
    /// Ask the module where it is.
    Look,
    /// Tell the target to forget it.
    Cancel,
    /// Say how far it is.
    Progress(Phase),
    /// It moved.
    Done(Box<Report>),
    /// It did not move, or nobody knows.
    Fail(Failure),
}

/// One migration.
#[derive(Clone, Debug)]
pub struct Migration {
    phase: Phase,
    wait: bool,
    last_call: bool,
    report: Report,
}

impl Migration {
    /// One whose files are being read. With `wait` it is over only when the memory is there.
    pub fn new(wait: bool) -> Self {
        Self {
            phase: Phase::Reading,
            wait,
            last_call: false,
            report: Report::default(),
        }
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes one input; returns what to do, in order.
    pub fn step(&mut self, input: Input) -> Vec<Output> {
        match (self.phase, input) {
            (Phase::Reading, Input::Read) => {
                self.phase = Phase::Preparing;
                vec![Output::Progress(self.phase), Output::Prepare]
            }
            (Phase::Preparing, Input::Prepared(Ok(()))) => {
                self.phase = Phase::Moving;
                vec![Output::Progress(self.phase), Output::Move]
            }
            (Phase::Preparing, Input::Prepared(Err(f))) => self.fail(f, false),
            (Phase::Preparing, Input::NotPrepared) => self.fail(
                Failure::refused(Reason::TargetLost, "the target did not answer"),
                true,
            ),
            (Phase::Moving, Input::Begun(Err(f))) => self.fail(f, true),
            (Phase::Moving, Input::Moved(Ok(report))) => self.moved(report),
            (Phase::Moving, Input::Moved(Err(r))) => self.fail(Failure::Refused(r), true),
            // The report of a complete memory says that the process moved as well.
            (Phase::Moving | Phase::Filling, Input::Filled(report)) => {
                let report = merge(&self.report, &report);
                self.done(report)
            }
            (Phase::Filling, Input::Doubt(true)) => {
                let f = Failure::Unavailable(
                    "the process has moved, and its memory takes too long to follow: `ssictl ps` tells how much of it is missing"
                        .to_owned(),
                );
                self.fail(f, false)
            }
            (Phase::Moving, Input::Doubt(last_call)) => {
                self.last_call |= last_call;
                vec![Output::Look]
            }
            (Phase::Moving, Input::Found(Place::There)) => self.moved(Report::default()),
            (Phase::Moving, Input::Found(Place::Here)) => self.fail(
                Failure::refused(Reason::TargetLost, "the move was given up"),
                true,
            ),
            (Phase::Moving, Input::Found(_)) if self.last_call => {
                let f = Failure::Unavailable(
                    "the move takes too long; it may still succeed".to_owned(),
                );
                self.fail(f, false)
            }
            // What comes late, twice, or for another phase changes nothing.
            _ => Vec::new(),
        }
    }

    fn moved(&mut self, report: Report) -> Vec<Output> {
        if !self.wait || report.filled_us.get() != 0 {
            return self.done(report);
        }
        self.report = report;
        self.phase = Phase::Filling;
        vec![Output::Progress(self.phase)]
    }

    fn done(&mut self, report: Report) -> Vec<Output> {
        self.phase = Phase::Over;
        vec![Output::Done(Box::new(report))]
    }

    fn fail(&mut self, failure: Failure, cancel: bool) -> Vec<Output> {
        self.phase = Phase::Over;
        let mut out = Vec::new();
        if cancel {
            out.push(Output::Cancel);
        }
        out.push(Output::Fail(failure));
        out
    }
}

/// The report of the move and the one of the memory, which may know only its own part.
fn merge(moved: &Report, filled: &Report) -> Report {
    let later = |a: U64, b: U64| U64::new(a.get().max(b.get()));
    Report {
        frozen_us: later(moved.frozen_us, filled.frozen_us),
        sent_us: later(moved.sent_us, filled.sent_us),
        ready_us: later(moved.ready_us, filled.ready_us),
        committed_us: later(moved.committed_us, filled.committed_us),
        filled_us: later(moved.filled_us, filled.filled_us),
        image_bytes: later(moved.image_bytes, filled.image_bytes),
        fetched_bytes: later(moved.fetched_bytes, filled.fetched_bytes),
        pushed_bytes: later(moved.pushed_bytes, filled.pushed_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to(phase: Phase, wait: bool) -> Migration {
        let mut m = Migration::new(wait);
        let inputs = [
            Input::Read,
            Input::Prepared(Ok(())),
            Input::Moved(Ok(Report::default())),
        ];
        for input in inputs {
            if m.phase() == phase {
                return m;
            }
            m.step(input);
        }
        assert_eq!(m.phase(), phase);
        m
    }

    fn refusal() -> Refusal {
        Refusal::new(Reason::FileKind, "socket")
    }

    #[test]
    fn the_way_through() {
        let mut m = Migration::new(true);
        assert_eq!(
            m.step(Input::Read),
            [Output::Progress(Phase::Preparing), Output::Prepare]
        );
        assert_eq!(
            m.step(Input::Prepared(Ok(()))),
            [Output::Progress(Phase::Moving), Output::Move]
        );
        assert_eq!(m.step(Input::Begun(Ok(()))), []);
        let moved = Report {
            committed_us: 5.into(),
            ..Report::default()
        };
        assert_eq!(
            m.step(Input::Moved(Ok(moved))),
            [Output::Progress(Phase::Filling)]
        );
        let filled = Report {
            pushed_bytes: 7.into(),
            ..Report::default()
        };
        let out = m.step(Input::Filled(filled));
        let [Output::Done(report)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(
            (report.committed_us.get(), report.pushed_bytes.get()),
            (5, 7),
            "each report adds its part"
        );
        assert_eq!(m.step(Input::Filled(Report::default())), []);
    }

    #[test]
    fn a_target_that_refuses_has_nothing_to_forget() {
        let f = Failure::Refused(refusal());
        let out = to(Phase::Preparing, false).step(Input::Prepared(Err(f.clone())));
        assert_eq!(out, [Output::Fail(f)]);
    }

    #[test]
    fn a_target_that_may_be_ready_is_told() {
        assert_eq!(
            to(Phase::Preparing, false).step(Input::NotPrepared)[0],
            Output::Cancel
        );
        assert_eq!(
            to(Phase::Moving, false).step(Input::Begun(Err(Failure::NoProcess(1))))[0],
            Output::Cancel
        );
        assert_eq!(
            to(Phase::Moving, false).step(Input::Moved(Err(refusal())))[0],
            Output::Cancel
        );
    }

    #[test]
    fn a_doubt_is_settled_by_looking() {
        let mut m = to(Phase::Moving, false);
        assert_eq!(m.step(Input::Doubt(false)), [Output::Look]);
        assert_eq!(m.step(Input::Found(Place::Moving)), []);
        assert!(matches!(
            m.clone().step(Input::Found(Place::There))[..],
            [Output::Done(_)]
        ));
        assert_eq!(m.clone().step(Input::Found(Place::Here))[0], Output::Cancel);
        m.step(Input::Doubt(true));
        assert!(matches!(
            m.step(Input::Found(Place::Moving))[..],
            [Output::Fail(Failure::Unavailable(_))]
        ));
    }

    #[test]
    fn memory_that_never_completes_is_no_success() {
        let mut m = to(Phase::Filling, true);
        assert_eq!(m.step(Input::Doubt(false)), []);
        assert!(matches!(
            &m.step(Input::Doubt(true))[..],
            [Output::Fail(Failure::Unavailable(text))] if text.contains("has moved")
        ));
    }

    fn any_input() -> impl Strategy<Value = Input> {
        prop_oneof![
            Just(Input::Read),
            Just(Input::Prepared(Ok(()))),
            Just(Input::Prepared(Err(Failure::NoProcess(1)))),
            Just(Input::NotPrepared),
            Just(Input::Begun(Ok(()))),
            Just(Input::Begun(Err(Failure::NoProcess(1)))),
            Just(Input::Moved(Ok(Report::default()))),
            Just(Input::Moved(Err(refusal()))),
            Just(Input::Filled(Report::default())),
            any::<bool>().prop_map(Input::Doubt),
            prop_oneof![
                Just(Place::Here),
                Just(Place::Moving),
                Just(Place::There),
                Just(Place::Unknown)
            ]
            .prop_map(Input::Found),
        ]
    }

    proptest! {
        /// Whatever comes in whatever order: one end, nothing after it, no cancel of what may run
        /// there, and no move before the target was ready.
        #[test]
        fn one_end_and_no_cancel_of_a_success(inputs in prop::collection::vec(any_input(), 0..40), wait: bool) {
            let mut m = Migration::new(wait);
            let mut ends = 0;
            let mut ready = false;
            for input in inputs {
                let over = m.phase() == Phase::Over;
                let success = matches!(input, Input::Moved(Ok(_)) | Input::Filled(_) | Input::Found(Place::There));
                ready |= matches!(input, Input::Prepared(Ok(()))) && m.phase() == Phase::Preparing;
                let filling = m.phase() == Phase::Filling;
                let out = m.step(input);
                prop_assert!(!over || out.is_empty());
                prop_assert!(!((success || filling) && out.contains(&Output::Cancel)));
                prop_assert!(ready || !out.contains(&Output::Move));
                ends += out.iter().filter(|o| matches!(o, Output::Done(_) | Output::Fail(_))).count();
            }
            prop_assert!(ends <= 1);
            prop_assert_eq!(ends == 1, m.phase() == Phase::Over);
        }
    }
}
