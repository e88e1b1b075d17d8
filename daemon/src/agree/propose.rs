// SPDX-License-Identifier: MIT OR Apache-2.0

//! Changes, and reads of what is agreed on, asked for on any node: whoever leads decides.

use std::sync::Arc;
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::error::{ClientWriteError, LinearizableReadError, RaftError};
use ssi::id::NodeId;
use tokio::time::{Instant, sleep, timeout};

use super::carrier::{self, Answer, NoAnswer, Refusal, Request};
use super::{AGAIN_MS, Agreement, Change, Error, Role, left, node_number, raft_id};
use crate::core::kv;
use crate::core::state::{Command, Outcome, State, Unique};

/// A change of which nobody knows whether it was made is proposed so often.
const SETTLE_TRIES: u32 = 3;
/// An answer of one that does not lead any more is waited for so long.
const FAREWELL: Duration = Duration::from_millis(500);

impl Agreement {
    /// Makes a change, wherever the leader is.
    ///
    /// # Errors
    /// [`Error::Unknown`] says that it may have been made; all others say that it was not.
    pub async fn propose(&self, command: Command) -> Result<Outcome, Error> {
        fits(&command)?;
        let until = Instant::now() + self.0.timing.answer();
        loop {
            let leader = match self.propose_here(&command, until).await {
                Ok(outcome) => return Ok(outcome),
                Err(Refusal::NotLeader(leader)) => leader,
                // One that has only just begun to lead has not heard of a majority yet.
                Err(Refusal::Unavailable) => None,
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(leader) = self.other(leader) {
                let request = Request::Propose(command.clone());
                match self.ask_leader(leader, &request, until).await {
                    Ok(Answer::Proposed(outcome)) => return Ok(outcome),
                    Ok(Answer::Refused(Refusal::NotLeader(_) | Refusal::Unavailable)) => {}
                    Ok(Answer::Refused(Refusal::Bad)) | Err(NoAnswer::NotSent) => {}
                    Ok(_) | Err(NoAnswer::Lost) => return Err(Error::Unknown),
                }
            }
            again(until).await?;
        }
    }

    /// Makes a change that only who leads makes; this node must lead.
    ///
    /// # Errors
    /// As [`Self::propose`], and [`Error::NotLeader`]. Another leader is not asked: it would take that
    /// for a lie.
    pub async fn decree(&self, command: Command) -> Result<Outcome, Error> {
        fits(&command)?;
        let until = Instant::now() + self.0.timing.answer();
        Ok(self.propose_here(&command, until).await?)
    }

    /// Makes a change that changes nothing if it is made again: it is proposed again as long as nobody
    /// knows what became of it.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn settle(&self, command: Command) -> Result<Outcome, Error> {
        for tries in 0..SETTLE_TRIES {
            match self.propose(command.clone()).await {
                Err(Error::Unknown) => {}
                Err(Error::Unavailable) if tries > 0 => break,
                known => return known,
            }
        }
        Err(Error::Unknown)
    }

    /// Makes a change of a value, once; `id` is random.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn write(
        &self,
        id: Unique,
        name: String,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
    ) -> Result<kv::Outcome, Error> {
        let command = kv::Command {
            id,
            after: self.0.state.borrow().kv.revision(),
            name,
            expected,
            value,
        };
        match self.settle(Command::Kv(command)).await? {
            Outcome::Kv(outcome) => Ok(outcome),
            Outcome::Refused(refusal) => Err(Error::Refused(refusal)),
            _ => Err(Error::Unknown),
        }
    }

    /// Proposes to this node, which must lead.
    pub(super) async fn propose_here(
        &self,
        command: &Command,
        until: Instant,
    ) -> Result<Outcome, Refusal> {
        let status = self.status();
        if status.role == Role::Stopped {
            return Err(Refusal::Stopped);
        }
        if status.role == Role::Leader && !status.has_majority {
            return Err(Refusal::Unavailable);
        }
        let write = self.0.raft.client_write(Change(command.clone()));
        match timeout(left(until), write).await {
            Ok(Ok(answer)) => Ok(answer.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to)))) => {
                Err(Refusal::NotLeader(to.leader_id.and_then(node_number)))
            }
            _ => Err(Refusal::Unknown),
        }
    }

    /// The state with all that was agreed on before this was called.
    ///
    /// # Errors
    /// When there is no majority to say so.
    pub async fn read(&self) -> Result<Arc<State>, Error> {
        #[cfg(test)]
        if super::tests::READS_ARE_STALE.get() {
            return Ok(Arc::clone(&self.0.state.borrow()));
        }
        let until = Instant::now() + self.0.timing.answer();
        let index = loop {
            let leader = match self.index_here(until).await {
                Ok(index) => break index,
                Err(Refusal::NotLeader(leader)) => leader,
                // One that has only just begun to lead has not heard of a majority yet.
                Err(Refusal::Unavailable) => None,
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(leader) = self.other(leader) {
                let asked = self.ask_leader(leader, &Request::ReadIndex, until).await;
                if let Ok(Answer::ReadIndex(index)) = asked {
                    break index;
                }
            }
            again(until).await?;
        };
        let wait = self.0.raft.wait(Some(left(until)));
        wait.applied_index_at_least(Some(index), "read")
            .await
            .map_err(|_| Error::Unavailable)?;
        Ok(Arc::clone(&self.0.state.borrow()))
    }

    /// Up to where one must have applied the log to read; this node must lead.
    pub(super) async fn index_here(&self, until: Instant) -> Result<u64, Refusal> {
        let read = self.0.raft.get_read_log_id(ReadPolicy::ReadIndex);
        match timeout(left(until), read).await {
            Ok(Ok((at, _))) => Ok(at.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(Refusal::NotLeader(to.leader_id.and_then(node_number)))
            }
            Ok(Err(RaftError::Fatal(_))) => Err(Refusal::Stopped),
            Ok(Err(_)) | Err(_) => Err(Refusal::Unavailable),
        }
    }

    /// The node with this number, if it is another.
    fn other(&self, number: Option<u16>) -> Option<NodeId> {
        number.and_then(NodeId::new).filter(|n| *n != self.0.own)
    }

    /// Asks a node that leads, and waits no longer for the answer than a little after another does.
    async fn ask_leader(
        &self,
        leader: NodeId,
        what: &Request,
        until: Instant,
    ) -> Result<Answer, NoAnswer> {
        let room = timeout(left(until), self.0.asking.acquire()).await;
        let Ok(Ok(_room)) = room else {
            return Err(NoAnswer::NotSent);
        };
        let overthrown = async {
            match self.led_by_another(raft_id(leader), left(until)).await {
                true => sleep(FAREWELL).await,
                // It still leads, or this node stops: then who asks is told so.
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = self.ask(leader, what, until) => answer,
            () = overthrown => Err(NoAnswer::Lost),
        }
    }

    pub(super) async fn ask(
        &self,
        to: NodeId,
        what: &Request,
        until: Instant,
    ) -> Result<Answer, NoAnswer> {
        carrier::ask(self.0.carrier.as_ref(), to, what, left(until)).await
    }
}

/// Whether a command may go through the log: with many of its kind it fits into a message.
///
/// # Errors
/// [`Error::TooLong`].
pub(super) fn fits(command: &Command) -> Result<(), Error> {
    let bytes = serde_json::to_vec(command).map_or(usize::MAX, |json| json.len());
    if bytes > carrier::MAX_COMMAND_BYTES {
        return Err(Error::TooLong(bytes));
    }
    Ok(())
}

/// Waits a little, if there is time for another try.
async fn again(until: Instant) -> Result<(), Error> {
    let pause = Duration::from_millis(AGAIN_MS);
    if left(until) <= pause {
        return Err(Error::Unavailable);
    }
    sleep(pause).await;
    Ok(())
}
