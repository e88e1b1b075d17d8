// SPDX-License-Identifier: MIT OR Apache-2.0

//! A failure on its way.

use ssi::uapi::Reason;

use crate::failure::{Failure, Refusal, bounded};

/// It did not happen.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    /// What kind of failure.
    #[prost(enumeration = "FailedKind", tag = "1")]
    pub kind: i32,
    /// A [`Reason`], when refused.
    #[prost(uint32, tag = "2")]
    pub reason: u32,
    /// What the reason is about.
    #[prost(uint64, tag = "3")]
    pub detail: u64,
    /// What the reason or the failure is about.
    #[prost(string, tag = "4")]
    pub text: String,
    /// The process.
    #[prost(uint32, tag = "5")]
    pub pid: u32,
    /// The stable word, when declined.
    #[prost(string, tag = "6")]
    pub code: String,
}

/// The kinds of [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum FailedKind {
    /// [`Failure::Unavailable`].
    Unavailable = 0,
    /// [`Failure::Refused`].
    Refused = 1,
    /// [`Failure::NoProcess`].
    NoProcess = 2,
    /// [`Failure::NoNode`].
    NoNode = 3,
    /// [`Failure::NotPermitted`].
    NotPermitted = 4,
    /// [`Failure::Declined`].
    Declined = 5,
}

impl From<&Failure> for Failed {
    fn from(f: &Failure) -> Self {
        let mut m = Failed::default();
        let kind = match f {
            Failure::Refused(r) => {
                m.reason = r.reason as u32;
                m.detail = r.detail;
                m.text.clone_from(&r.text);
                FailedKind::Refused
            }
            Failure::NoProcess(pid) => {
                m.pid = *pid;
                FailedKind::NoProcess
            }
            Failure::NoNode(name) => {
                m.text.clone_from(name);
                FailedKind::NoNode
            }
            Failure::NotPermitted(pid) => {
                m.pid = *pid;
                FailedKind::NotPermitted
            }
            Failure::NotAdministrator => FailedKind::NotPermitted,
            Failure::Declined { code, text } => {
                m.code.clone_from(code);
                m.text.clone_from(text);
                FailedKind::Declined
            }
            Failure::Unavailable(text) => {
                m.text.clone_from(text);
                FailedKind::Unavailable
            }
        };
        m.set_kind(kind);
        m
    }
}

impl From<Failed> for Failure {
    fn from(m: Failed) -> Self {
        match m.kind() {
            FailedKind::Declined => Failure::declined(&m.code, m.text),
            FailedKind::Refused => {
                let reason = Reason::from_u32(m.reason).unwrap_or(Reason::TargetRefused);
                Failure::Refused(Refusal {
                    detail: m.detail,
                    ..Refusal::new(reason, m.text)
                })
            }
            FailedKind::NoProcess => Failure::NoProcess(m.pid),
            FailedKind::NoNode => Failure::NoNode(bounded(m.text)),
            FailedKind::NotPermitted => Failure::NotPermitted(m.pid),
            FailedKind::Unavailable => Failure::Unavailable(bounded(m.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::MAX_MESSAGE_BYTES;

    #[test]
    fn failures_survive_the_way() {
        for f in [
            Failure::Refused(Refusal {
                detail: 5,
                ..Refusal::new(Reason::FileKind, "socket")
            }),
            Failure::NoProcess(7),
            Failure::NoNode("n9".to_owned()),
            Failure::NotPermitted(8),
            Failure::Unavailable("n2 does not answer".to_owned()),
        ] {
            assert_eq!(Failure::from(Failed::from(&f)), f);
        }
    }

    #[test]
    fn what_others_say_of_a_failure_is_bounded() {
        for kind in 0..6 {
            let failed = Failed {
                kind,
                text: "x".repeat(MAX_MESSAGE_BYTES / 2),
                ..Failed::default()
            };
            assert!(Failure::from(failed).to_string().len() < 2048, "{kind}");
        }
    }
}
