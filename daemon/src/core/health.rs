// SPDX-License-Identifier: MIT OR Apache-2.0

//! What is wrong with a cluster, from what its nodes say of each other.

use std::collections::BTreeMap;

use ssi::id::NodeId;

use super::offence::Offence;
use super::state::State;

/// Clocks may differ by so much. The hardware of a machine keeps whole seconds, so one that nobody has set
/// since it booted may be a second off.
pub const MAX_SKEW_US: i64 = 1_500_000;
/// State of a node all is well with.
const UP: &str = "up";

/// Clock and distance of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// How far its clock is ahead of ours, in microseconds; true to half of the round trip.
    pub offset_us: i64,
    /// From the question to the answer, in microseconds.
    pub round_trip_us: i64,
}

impl Clock {
    /// From when we asked and heard, and what it said in between: Cristian, "Probabilistic Clock
    /// Synchronization", 1989. All in nanoseconds since 1970, the round trip by a clock that is
    /// never set.
    pub fn measured(asked_ns: i64, said_ns: i64, round_trip_ns: i64) -> Self {
        let middle_ns = asked_ns.saturating_add(round_trip_ns / 2);
        Self {
            offset_us: said_ns.saturating_sub(middle_ns) / 1000,
            round_trip_us: round_trip_ns / 1000,
        }
    }

    /// Whether its clock is off by more than [`MAX_SKEW_US`], whatever the way did to the measurement.
    pub fn is_off(self) -> bool {
        self.offset_us.saturating_abs() > MAX_SKEW_US.saturating_add(self.round_trip_us / 2)
    }
}

/// What a node says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// What it thinks of the others.
    pub states: BTreeMap<NodeId, String>,
    /// Its clock; none of the node that asks.
    pub clock: Option<Clock>,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Some do not see a node as they should.
    Node {
        /// Which.
        node: NodeId,
        /// What they think of it.
        state: String,
        /// Who.
        seen_by: Vec<NodeId>,
    },
    /// A node is up and does not answer.
    NoAnswer(NodeId),
    /// A clock is off.
    ClockSkew {
        /// Whose.
        node: NodeId,
        /// How far it is ahead of ours, in microseconds.
        offset_us: i64,
    },
    /// Some accuse a node of what no honest one does.
    Accused {
        /// Whom.
        node: NodeId,
        /// Who, and of what.
        accusers: Vec<(NodeId, Offence)>,
        /// Whether those are most of the others.
        quarantined: bool,
    },
    /// A node gives others up after another time than this one: how long one must be cut off before all know that it
    /// is depends on who leads.
    OtherTime {
        /// Which.
        node: NodeId,
        /// Its time, in milliseconds.
        there_ms: u64,
        /// That of this node.
        here_ms: u64,
    },
    /// A node hears of no majority: it can have nothing agreed on.
    NoMajority(NodeId),
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Problem::Node {
                node,
                state,
                seen_by,
            } => {
                write!(f, "{node} is {state}, say")?;
                seen_by
                    .iter()
                    .enumerate()
                    .try_for_each(|(i, by)| write!(f, "{} {by}", if i == 0 { "" } else { "," }))
            }
            Problem::NoAnswer(node) => write!(f, "{node} does not answer"),
            Problem::ClockSkew { node, offset_us } => write!(
                f,
                "the clock of {node} is {} ms {} that of this node",
                offset_us.saturating_abs() / 1000,
                if *offset_us < 0 { "behind" } else { "ahead of" }
            ),
            Problem::Accused {
                node,
                accusers,
                quarantined,
            } => {
                let how = if *quarantined { "quarantined, " } else { "" };
                write!(f, "{node} is {how}accused by")?;
                accusers.iter().enumerate().try_for_each(|(i, (by, of))| {
                    write!(f, "{} {by} ({of})", if i == 0 { "" } else { "," })
                })
            }
            Problem::OtherTime {
                node,
                there_ms,
                here_ms,
            } => write!(
                f,
                "peer_dead_after_s is {} on {node}, and {} here",
                there_ms / 1000,
                here_ms / 1000
            ),
            Problem::NoMajority(node) => write!(f, "{node} hears of no majority of the cluster"),
        }
    }
}

/// What is wrong, as `own` sees it: `views` has an entry for each node of the cluster, without a
/// view for those that did not answer.
pub fn problems(own: NodeId, views: &BTreeMap<NodeId, Option<View>>) -> Vec<Problem> {
    let mut seen: BTreeMap<(NodeId, &str), Vec<NodeId>> = BTreeMap::new();
    for (by, view) in views {
        for (node, state) in view.iter().flat_map(|v| &v.states) {
            // Of nodes we know nothing of we have nothing to say.
            if state != UP && node != by && views.contains_key(node) {
                seen.entry((*node, state)).or_default().push(*by);
            }
        }
    }
    let mut all: Vec<Problem> = seen
        .into_iter()
        .map(|((node, state), seen_by)| Problem::Node {
            node,
            state: state.to_owned(),
            seen_by,
        })
        .collect();
    let ours = views.get(&own).and_then(Option::as_ref);
    for (node, view) in views {
        let is_up = ours
            .and_then(|v| v.states.get(node))
            .is_some_and(|s| s == UP);
        match view {
            None if is_up => all.push(Problem::NoAnswer(*node)),
            Some(View { clock: Some(c), .. }) if c.is_off() => all.push(Problem::ClockSkew {
                node: *node,
                offset_us: c.offset_us,
            }),
            _ => {}
        }
    }
    all
}

/// Who has another idea than `own` of how long one is given.
pub fn other_times(own: NodeId, state: &State) -> impl Iterator<Item = Problem> + '_ {
    let time = |node: &NodeId| Some(state.nodes.get(node)?.facts.dead_after_ms);
    let here_ms = time(&own);
    state.nodes.keys().filter_map(move |node| {
        let (there_ms, here_ms) = (time(node)?, here_ms?);
        (there_ms != here_ms).then_some(Problem::OtherTime {
            node: *node,
            there_ms,
            here_ms,
        })
    })
}

/// What is held against nodes.
pub fn accusations(state: &State) -> impl Iterator<Item = Problem> + '_ {
    let accused = state.nodes.iter();
    let accused = accused.filter(|(_, m)| !m.conduct.accusers.is_empty());
    accused.map(|(node, member)| Problem::Accused {
        node: *node,
        accusers: member.conduct.accusers.clone().into_iter().collect(),
        quarantined: member.conduct.quarantined,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(node: u16) -> NodeId {
        NodeId::new(node).unwrap()
    }

    fn view(states: &[(u16, &str)], offset_us: i64) -> Option<View> {
        Some(View {
            states: states
                .iter()
                .map(|(i, s)| (n(*i), (*s).to_owned()))
                .collect(),
            clock: Some(Clock {
                offset_us,
                round_trip_us: 1000,
            }),
        })
    }

    fn said(views: [Option<View>; 3]) -> Vec<String> {
        let views = (1..).map(n).zip(views).collect();
        problems(n(1), &views)
            .iter()
            .map(Problem::to_string)
            .collect()
    }

    #[test]
    fn a_whole_cluster_has_no_problems() {
        let all = [
            view(&[(2, "up"), (3, "up")], 0),
            view(&[(1, "up"), (3, "up")], 1_400_000),
            view(&[(1, "up"), (2, "up")], -1_400_000),
        ];
        assert_eq!(said(all), [""; 0]);
        let alone = BTreeMap::from([(n(1), Some(View::default()))]);
        assert_eq!(problems(n(1), &alone), []);
    }

    #[test]
    fn times_that_differ_are_told() {
        let mut state = crate::core::state::tests::of_nodes(3);
        assert_eq!(other_times(n(1), &state).count(), 0);
        state.nodes.get_mut(&n(2)).unwrap().facts.dead_after_ms = 10_000;
        let told = |own| {
            let all = other_times(n(own), &state).map(|p| p.to_string());
            all.collect::<Vec<_>>()
        };
        assert_eq!(told(1), ["peer_dead_after_s is 10 on n2, and 5 here"]);
        assert_eq!(told(2).len(), 2);
        assert_eq!(told(9), [""; 0], "it does not know yet");
    }

    #[test]
    fn a_node_that_is_gone_is_one_problem() {
        let all = [
            view(&[(2, "up"), (3, "dead")], 0),
            view(&[(1, "up"), (3, "dead")], 0),
            None,
        ];
        assert_eq!(said(all), ["n3 is dead, say n1, n2"]);
    }

    #[test]
    fn a_wire_cut_between_two_others_is_seen() {
        let all = [
            view(&[(2, "up"), (3, "up")], 0),
            view(&[(1, "up"), (3, "silent")], 0),
            view(&[(1, "up"), (2, "dead")], 0),
        ];
        assert_eq!(said(all), ["n2 is dead, say n3", "n3 is silent, say n2"]);
    }

    #[test]
    fn one_that_hangs_and_a_clock_that_is_off() {
        let all = [
            view(&[(2, "up"), (3, "up"), (9, "dead")], 0),
            None,
            view(&[(1, "up"), (2, "up")], -2_000_000),
        ];
        let want = [
            "n2 does not answer",
            "the clock of n3 is 2000 ms behind that of this node",
        ];
        assert_eq!(said(all), want);
    }

    #[test]
    fn who_is_accused_is_named_with_those_who_accuse() {
        let accused = |quarantined| Problem::Accused {
            node: n(3),
            accusers: vec![(n(1), Offence::NoPacket), (n(2), Offence::Unreadable)],
            quarantined,
        };
        let by = "accused by n1 (no-packet), n2 (unreadable)";
        assert_eq!(accused(false).to_string(), format!("n3 is {by}"));
        assert_eq!(
            accused(true).to_string(),
            format!("n3 is quarantined, {by}")
        );
    }

    #[test]
    fn an_offset_counts_from_the_middle() {
        let clock = Clock::measured(1_000_000_000, 1_003_000_000, 4_000_000);
        assert_eq!((clock.offset_us, clock.round_trip_us), (1000, 4000));
        // A slow answer proves nothing.
        let slow = Clock::measured(0, 2_000_000_000, 4_000_000_000);
        assert!(!slow.is_off());
        assert!(Clock::measured(0, i64::MAX, 0).is_off());
        assert!(Clock::measured(0, i64::MIN, 0).is_off());
    }
}
