// SPDX-License-Identifier: MIT OR Apache-2.0

//! What must be the same on all nodes, because a running process takes it along: what its program
//! found out about the processor it keeps for good, and modules of two kernels do not fit.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::health::Clock;

/// Longest name of a kernel.
pub const MAX_KERNEL_BYTES: usize = 256;
/// Most features a processor may have, and the longest name of one.
pub const MAX_FEATURES: usize = 256;
/// See [`MAX_FEATURES`].
pub const MAX_FEATURE_BYTES: usize = 32;

/// What a node is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// Release and version of its kernel.
    pub kernel: String,
    /// Version of the protocol between the modules.
    pub wire: u32,
    /// What its processor can do for programs, by the names the kernel has for it.
    pub features: BTreeSet<String>,
    /// Which parts of the processor's state are saved: bits of XCR0.
    pub xfeatures: u64,
    /// After so long without a sign of life it gives others up, in milliseconds. It may be another one on each node while it
    /// is changed, and then no [`Difference`].
    pub dead_after_ms: u64,
}

/// Something that is not as at the other node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Difference {
    /// Another kernel.
    Kernel {
        /// Of the other.
        there: String,
        /// Of this node.
        here: String,
    },
    /// Modules that speak another version.
    Wire {
        /// Of the other.
        there: u32,
        /// Of this node.
        here: u32,
    },
    /// The other's processor has fewer features.
    Lacks(Vec<String>),
    /// It has more.
    Adds(Vec<String>),
    /// It saves other parts of its state.
    Xfeatures {
        /// Of the other.
        there: u64,
        /// Of this node.
        here: u64,
    },
    /// The clocks differ.
    Clock {
        /// How far that of the other is ahead, in microseconds.
        ahead_us: i64,
    },
}

impl Difference {
    /// Whether the clock of another node is too far off, whatever the way did to the measurement.
    pub fn of_clock(clock: Clock) -> Option<Difference> {
        clock.is_off().then_some(Difference::Clock {
            ahead_us: clock.offset_us,
        })
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Kernel { there, here } => write!(f, "kernel {there} there, {here} here"),
            Difference::Wire { there, here } => {
                write!(f, "modules of version {there} there, {here} here")
            }
            Difference::Lacks(names) => {
                write!(f, "the processor there lacks {}", names.join(" "))
            }
            Difference::Adds(names) => write!(f, "the processor here lacks {}", names.join(" ")),
            Difference::Xfeatures { there, here } => {
                write!(f, "processor state {there:#x} there, {here:#x} here")
            }
            Difference::Clock { ahead_us } => {
                let side = if *ahead_us < 0 { "behind" } else { "ahead" };
                let off_ms = ahead_us.saturating_abs() / 1000;
                write!(f, "the clock there is {off_ms} ms {side}")
            }
        }
    }
}

impl Facts {
    /// Whether a node can say this of itself. What it says is shown to people.
    pub fn make_sense(&self) -> bool {
        is_name(&self.kernel, MAX_KERNEL_BYTES)
            && self.features.len() <= MAX_FEATURES
            && self.features.iter().all(|n| is_name(n, MAX_FEATURE_BYTES))
    }

    /// In what `there`, another node's, differ from these.
    pub fn differ(&self, there: &Facts) -> Vec<Difference> {
        let here = self;
        let mut all = Vec::new();
        if there.kernel != here.kernel {
            all.push(Difference::Kernel {
                there: there.kernel.clone(),
                here: here.kernel.clone(),
            });
        }
        if there.wire != here.wire {
            all.push(Difference::Wire {
                there: there.wire,
                here: here.wire,
            });
        }
        let only = |a: &Facts, b: &Facts| -> Vec<String> {
            a.features.difference(&b.features).cloned().collect()
        };
        let (lacks, adds) = (only(here, there), only(there, here));
        if !lacks.is_empty() {
            all.push(Difference::Lacks(lacks));
        }
        if !adds.is_empty() {
            all.push(Difference::Adds(adds));
        }
        if there.xfeatures != here.xfeatures {
            all.push(Difference::Xfeatures {
                there: there.xfeatures,
                here: here.xfeatures,
            });
        }
        all
    }
}

/// Whether `text` is printable and neither empty nor longer than `most` bytes.
fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::health::MAX_SKEW_US;
    use proptest::prelude::*;

    fn facts(kernel: &str, features: &[&str]) -> Facts {
        Facts {
            kernel: kernel.to_owned(),
            wire: 1,
            features: features.iter().map(|f| (*f).to_owned()).collect(),
            xfeatures: 7,
            dead_after_ms: 5_000,
        }
    }

    #[test]
    fn each_difference_is_said_with_its_side() {
        let here = facts("7.3.3 #1", &["avx2", "ssse3"]);
        let mut there = facts("7.3.4 #1", &["amx_tile", "ssse3"]);
        there.wire = 2;
        there.xfeatures = 0xe7;
        let said: Vec<String> = here
            .differ(&there)
            .iter()
            .map(ToString::to_string)
            .collect();
        let want = [
            "kernel 7.3.4 #1 there, 7.3.3 #1 here",
            "modules of version 2 there, 1 here",
            "the processor there lacks avx2",
            "the processor here lacks amx_tile",
            "processor state 0xe7 there, 0x7 here",
        ];
        assert_eq!(said, want);
    }

    #[test]
    fn a_clock_has_a_bound_and_a_doubt() {
        let clock = |offset_us, round_trip_us| {
            Difference::of_clock(Clock {
                offset_us,
                round_trip_us,
            })
        };
        assert_eq!(clock(MAX_SKEW_US, 0), None);
        assert_eq!(clock(MAX_SKEW_US + 500, 1000), None);
        let late = clock(-2_000_000, 100).unwrap();
        assert_eq!(late.to_string(), "the clock there is 2000 ms behind");
        assert!(clock(i64::MIN, i64::MAX).is_some());
    }

    #[test]
    fn nonsense_is_seen() {
        assert!(facts("7.3.4 #1 SMP", &["avx"]).make_sense());
        let long = "x".repeat(MAX_KERNEL_BYTES + 1);
        for kernel in ["", "a\nb", "\u{1b}[2J", &long] {
            assert!(!facts(kernel, &[]).make_sense(), "{kernel:?}");
        }
        assert!(!facts("k", &[""]).make_sense());
        let mut many = facts("k", &[]);
        many.features = (0..=MAX_FEATURES).map(|n| n.to_string()).collect();
        assert!(!many.make_sense());
    }

    proptest! {
        #[test]
        fn only_equals_do_not_differ(
            a in prop::collection::btree_set("[a-d]", 0..4),
            b in prop::collection::btree_set("[a-d]", 0..4),
        ) {
            let with = |features: &BTreeSet<String>| Facts {
                features: features.clone(),
                ..facts("k", &[])
            };
            let (one, two) = (with(&a), with(&b));
            prop_assert_eq!(one.differ(&two).is_empty(), a == b);
            prop_assert_eq!(one.differ(&two).len(), two.differ(&one).len());
        }
    }
}
