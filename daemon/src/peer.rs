// SPDX-License-Identifier: MIT OR Apache-2.0

//! A peer as the rest of the daemon sees it: what can be said to it and asked of it. Behind each
//! is a [`task`].

pub mod task;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ssi::id::NodeId;
use ssi::wire::Class;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::conn::Heard;
use crate::core::liveness::State;
use crate::core::offence::Offence;
use crate::failure::Failure;
use crate::msg::{Answer, Body, Progress, Reply, Request};
use crate::net::Opened;

/// Longest wait for a peer that is no node any more to be let go.
const ENDED_IN: Duration = Duration::from_secs(30);
/// Answers to one call that wait to be taken: progress and the end.
const MAX_ANSWERS: usize = 16;

/// Heard, but the module has not all of its links.
const LINKING: &str = "linking";
/// The words users see for what is thought of a peer.
pub const STATES: [&str; 4] = [
    State::Up.name(),
    LINKING,
    State::Silent.name(),
    State::Dead.name(),
];

/// What happens to a peer.
#[derive(Debug)]
pub enum Input {
    /// Its control connection of this number said something.
    Conn(u64, Heard),
    /// It opened a connection to us, or we to it.
    Opened(Opened),
    /// We could not open the control connection.
    ControlFailed(String),
    /// We could not open a link.
    LinkFailed(Class, String),
    /// The module says that a link is of no use any more.
    LinkLost(Class),
    /// A link still works, but another is needed.
    LinkWorn(Class),
    /// It is no node of the cluster any more.
    Removed,
    /// Another tie to this node.
    Tied,
    /// Tell it this if there is a connection; nobody answers.
    Say(Body),
    /// Ask it something; answers go there, and the end of that channel means that none will come.
    Ask(Request, mpsc::Sender<Answer>),
}

impl From<(u64, Heard)> for Input {
    fn from((id, heard): (u64, Heard)) -> Self {
        Input::Conn(id, heard)
    }
}

/// What serves the calls of peers.
pub trait Service: Send + Sync + 'static {
    /// Serves one call.
    fn serve(
        self: Arc<Self>,
        from: NodeId,
        request: Request,
        replies: Replies,
    ) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// A peer says what it thinks of who is there, in a packet of [`crate::core::swim`].
    fn hinted(&self, from: NodeId, packet: Vec<u8>);

    /// A peer did what no honest node does.
    fn offended(&self, from: NodeId, offence: Offence);

    /// A peer was declared dead.
    fn died(self: Arc<Self>, node: NodeId) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Longest wait for room for the last answer to a call.
const ANSWER_IN: Duration = Duration::from_secs(30);

/// Takes the answers to one call of a peer.
#[derive(Debug)]
pub struct Replies {
    id: u64,
    queue: mpsc::WeakSender<Body>,
}

impl Replies {
    /// Says how far it is, if there is room for that.
    pub fn progress(&self, phase: &str) {
        if let Some(queue) = self.queue.upgrade() {
            let _ = queue.try_send(self.body(Answer::Progress(Progress {
                phase: phase.to_owned(),
            })));
        }
    }

    /// Sends the last answer; says whether the connection was still there to take it.
    pub async fn finish(self, answer: Answer) -> bool {
        let Some(queue) = self.queue.upgrade() else {
            return false;
        };
        queue
            .send_timeout(self.body(answer), ANSWER_IN)
            .await
            .is_ok()
    }

    fn body(&self, answer: Answer) -> Body {
        Body::Reply(Reply {
            id: self.id,
            answer: Some(answer),
        })
    }
}

/// What others see of a peer.
#[derive(Clone, Copy, Debug)]
struct Status {
    state: State,
    /// Of each class, whether the module has a link that is not known to be broken.
    linked: [bool; Class::COUNT],
    /// Whether it is not tied to this node, and the module knows.
    is_loose: bool,
}

/// A handle to the task of a peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Which.
    pub node: NodeId,
    input: mpsc::Sender<Input>,
    status: watch::Receiver<Status>,
}

impl Peer {
    /// What is thought of it.
    pub fn state(&self) -> State {
        self.status.borrow().state
    }

    /// The word users see for that.
    pub fn state_name(&self) -> &'static str {
        let status = *self.status.borrow();
        match status.state {
            State::Up if status.linked != [true; Class::COUNT] => LINKING,
            state => state.name(),
        }
    }

    /// Tells its task something.
    pub async fn tell(&self, input: Input) {
        // The task lives until the peer is no node any more: then there is nobody to tell.
        let _ = self.input.send(input).await;
    }

    /// Tells it something that may be lost. Does not wait.
    pub fn hint(&self, body: Body) {
        let _ = self.input.try_send(Input::Say(body));
    }

    /// Completes when it is not tied to this node any more and the module has ended what was.
    pub async fn loose(&self) {
        let mut status = self.status.clone();
        // Its task is gone: then there is nothing left of it.
        let _ = status.wait_for(|s| s.is_loose).await;
    }

    /// Completes when its task has ended, because it is no node any more; or does not within a time, as when the
    /// module has gone and cannot be told.
    pub async fn ended(&self) {
        if timeout(ENDED_IN, self.input.closed()).await.is_err() {
            tracing::error!(peer = %self.node, "is no node any more, and the module does not let go of it");
        }
    }

    /// Asks it something; returns where the answers come.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when it is not there.
    pub async fn ask(&self, request: Request) -> Result<mpsc::Receiver<Answer>, Failure> {
        let (sender, receiver) = mpsc::channel(MAX_ANSWERS);
        self.input
            .send(Input::Ask(request, sender))
            .await
            .map_err(|_| Failure::unreachable(self.node))?;
        Ok(receiver)
    }

    /// Asks it something that has one answer.
    ///
    /// # Errors
    /// [`Failure::Unavailable`] when none comes in time, or the failure that came.
    pub async fn ask_once(&self, request: Request, within: Duration) -> Result<Answer, Failure> {
        let answer = async {
            self.ask(request)
                .await?
                .recv()
                .await
                .ok_or(Failure::unreachable(self.node))
        };
        match tokio::time::timeout(within, answer).await {
            Ok(Ok(Answer::Failed(f))) => Err(f.into()),
            Ok(r) => r,
            Err(_) => Err(Failure::Unavailable(format!(
                "{} did not answer in {} s",
                self.node,
                within.as_secs()
            ))),
        }
    }
}
