// SPDX-License-Identifier: MIT OR Apache-2.0

//! Why something that was asked for did not happen, in the words users and other nodes see.

use ssi::id::NodeId;
use ssi::uapi::Reason;

/// Longest text of a refusal that is kept.
const MAX_TEXT_CHARS: usize = 1024;
/// Longest word for why something is declined.
const MAX_CODE_CHARS: usize = 32;

/// Why a process does not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The stable reason.
    pub reason: Reason,
    /// File descriptor, address or thread the reason is about; 0 when it is about none.
    pub detail: u64,
    /// Path or name the reason is about; may be empty.
    pub text: String,
}

impl Refusal {
    /// A refusal with a text.
    pub fn new(reason: Reason, text: impl Into<String>) -> Self {
        Self {
            reason,
            detail: 0,
            text: bounded(text.into()),
        }
    }
}

/// A text that another node may have chosen, no longer than it may be.
pub fn bounded(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
        text.truncate(end);
    }
    text
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.reason.code())?;
        if !self.text.is_empty() {
            write!(f, " ({})", self.text)?;
        }
        Ok(())
    }
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The process cannot move; it goes on where it was.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// There is no such process.
    #[error("no process {0} in the cluster")]
    NoProcess(u32),
    /// There is no such node.
    #[error("no node {0} in the cluster")]
    NoNode(String),
    /// The process belongs to another user.
    #[error("process {0} belongs to another user")]
    NotPermitted(u32),
    /// Only an administrator may ask for it.
    #[error("only root and members of the group `ssi` may do that")]
    NotAdministrator,
    /// The cluster, or this machine, does not do what an administrator asked for.
    #[error("{text}")]
    Declined {
        /// The stable word for why.
        code: String,
        /// Why, for people.
        text: String,
    },
    /// A node or the module could not be asked.
    #[error("{0}")]
    Unavailable(String),
}

impl Failure {
    /// The target or its way refused.
    pub fn refused(reason: Reason, text: impl Into<String>) -> Self {
        Self::Refused(Refusal::new(reason, text))
    }

    /// What an administrator asked for is not done, for the reason with the stable word `code`.
    pub fn declined(code: &str, text: impl Into<String>) -> Self {
        let refusal = Refusal::new(Reason::None, text);
        let short = code.chars().take(MAX_CODE_CHARS).collect();
        Self::Declined {
            code: short,
            text: refusal.text,
        }
    }

    /// A node that does not answer.
    pub fn unreachable(node: NodeId) -> Self {
        Self::Unavailable(format!("{node} does not answer"))
    }
}

/// What one can do about a reason; for people.
pub fn hint(reason: Reason) -> &'static str {
    match reason {
        Reason::None => "",
        Reason::NoProcess => "`ssictl ps` lists the processes of the cluster",
        Reason::TooOld => {
            "it was started before the module was loaded; start it anew to make it movable"
        }
        Reason::KernelThread => "kernel threads stay where they are",
        Reason::Moving => "wait for the move that is under way",
        Reason::AlreadyThere => "it runs on that node already",
        Reason::NoLink => "`ssictl node ls` shows the state of the nodes",
        Reason::Children => "wait for its children to end, or move it home first",
        Reason::SharedMemory => {
            "another process shares its memory; it can move when that one has ended or called exec"
        }
        Reason::VforkChild => "try again after it has called exec",
        Reason::SharedMapping => "it shares memory with other processes",
        Reason::SpecialMapping => "it has a device mapped",
        Reason::Pinned => "wait for its direct I/O to end",
        Reason::FileKind => "close that file; `ls -l /proc/PID/fd` shows what it is",
        Reason::FileLock => "release the lock on that file",
        Reason::Traced => "detach the debugger",
        Reason::Seccomp => "programs with a seccomp filter cannot move yet",
        Reason::Namespace => "programs in containers cannot move yet",
        Reason::Compat => "32-bit programs cannot move yet",
        Reason::Timer => "timers of that kind cannot move yet",
        Reason::ProcessorFeature => "the target's processor or kernel lacks what it uses",
        Reason::Frozen => "thaw its cgroup, or let it continue",
        Reason::Unreachable => "it is inside a system call that cannot be interrupted; try again",
        Reason::SysvIpc => "System V shared memory and semaphores cannot move yet",
        Reason::AsyncIo => "asynchronous I/O and io_uring cannot move yet",
        Reason::TooLarge => "it has more threads, mappings or files than can be moved",
        Reason::Scheduling => {
            "real-time programs cannot move yet; chrt -o makes it an ordinary one"
        }
        Reason::Ending => "it is ending",
        Reason::MissingPath => "create that path on the target, or let the program leave it",
        Reason::TargetRefused => "the log of ssid on the target says why",
        Reason::TargetLost => {
            "`ssictl node ls` shows the state of the nodes; it is safe to try again"
        }
        Reason::SharedFiles => "it shares its table of files with another process",
        Reason::NoMajority => {
            "`ssictl cluster status` shows which nodes are missing; it is safe to try again when they are back"
        }
        Reason::NotHosted => "`[guests]` in the target's ssid.toml says whom it hosts",
    }
}

/// An error in words, with what it comes from.
pub fn in_full(e: &(dyn std::error::Error + 'static)) -> String {
    let (mut text, mut source) = (e.to_string(), e.source());
    while let Some(s) = source {
        text = format!("{text}: {s}");
        source = s.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_but_none_has_a_hint() {
        for r in Reason::ALL {
            assert_eq!(hint(r).is_empty(), r == Reason::None, "{}", r.code());
        }
    }

    #[test]
    fn every_reason_a_user_sees_is_documented() {
        let manual = include_str!("../../Documentation/admin/ssictl.md");
        for r in Reason::ALL {
            // No process is a status of its own.
            let told = r != Reason::None && r != Reason::NoProcess;
            assert_eq!(
                manual.contains(&format!("| `{}` |", r.code())),
                told,
                "{}",
                r.code()
            );
        }
    }

    #[test]
    fn texts_are_bounded() {
        let r = Refusal::new(Reason::FileKind, "é".repeat(5000));
        assert_eq!(r.text.chars().count(), MAX_TEXT_CHARS);
    }
}
