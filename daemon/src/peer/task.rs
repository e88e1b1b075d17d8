// SPDX-License-Identifier: MIT OR Apache-2.0

//! One task for each peer: its control connection, its links, whether it lives, and the calls in
//! both directions.
//!
//! The task takes one input after the other, so what the module is told about a peer is told in
//! order: a death before the links that follow it. Whatever takes long (dialling, serving a call)
//! runs beside it and comes back as an input.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ssi::id::NodeId;
use ssi::wire::Class;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::{Input, Peer, Replies, Service, Status};
use crate::clock::now_ms;
use crate::config::Node;
use crate::conn::{Conn, Heard};
use crate::core::liveness::{Liveness, State};
use crate::core::relink::Relink;
use crate::core::tie::Tie;
use crate::failure::Failure;
use crate::kmod::Kmod;
use crate::msg::{Answer, Body, Call, Failed, Relink as RelinkMessage, Reply, Request};
use crate::net::{Net, Opened};
use crate::pki;
use crate::session::Session;

/// Inputs that wait. Connections wait when it is full, and so does what the peer sends.
const MAX_INPUTS: usize = 128;
/// Our calls that wait for an answer of one peer.
const MAX_PENDING: usize = 256;
/// Calls of one peer served at once; more are turned away. Those about what is agreed on are counted by themselves, so
/// that no number of moves holds them up.
const MAX_SERVED: usize = 64;
/// Questions of one peer answered at once: users ask them, and may not keep from being heard what changes something.
const MAX_QUESTIONS: usize = 32;
/// A connecting side that does not react is asked for a link again after this.
const ASK_AGAIN_MS: u64 = 5_000;
/// A link said to be broken that does not look so is looked at again after this.
const LOOK_AGAIN_MS: u64 = 1_000;
/// Pause before the module is told of a death again, and before a link it did not take is asked for.
const RETRY_MS: u64 = 1_000;

/// The part that differs between the two sides of a pair.
#[derive(Debug)]
enum Side {
    /// We connect.
    Dials {
        control: Relink,
        links: [Relink; Class::COUNT],
    },
    /// It connects; of each class, the last number that came and when to ask for another.
    Accepts {
        serials: [u64; Class::COUNT],
        ask_ms: [Option<u64>; Class::COUNT],
    },
}

/// A link that came before the control connection of its run.
struct Early {
    instance: u64,
    serial: u64,
    socket: OwnedFd,
}

struct Task {
    peer: Node,
    net: Arc<Net>,
    module: Kmod,
    service: Arc<dyn Service>,
    input: mpsc::WeakSender<Input>,
    start: Instant,
    side: Side,
    liveness: Liveness,
    status: watch::Sender<Status>,
    /// When to tell the module that the peer is dead, if it must be told.
    tell_death_ms: Option<u64>,
    /// Of each class, the socket the module got last, to look at when it says that one broke.
    sockets: [Option<OwnedFd>; Class::COUNT],
    /// When to look at it again, because it did not look broken.
    look_ms: [Option<u64>; Class::COUNT],
    /// Of each class, a link of a run of the peer whose control connection has yet to come: the two
    /// are accepted side by side.
    early: [Option<Early>; Class::COUNT],
    conn: Option<Conn>,
    conns: u64,
    instance: Option<u64>,
    pending: HashMap<u64, mpsc::Sender<Answer>>,
    calls: u64,
    served: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    agreeing: Arc<Semaphore>,
    /// Why there was no control connection the last time.
    complaint: String,
    /// It is no node any more: this ends when the module knows.
    removed: bool,
    /// What ties it to this node. The daemons speak with each other whatever it is.
    tie: Tie,
    /// When the certificate runs out by which the peer proved who it is when it connected last.
    proven_until_ms: Option<u64>,
    /// Whether it was said what ties it to this node since this daemon runs. Before that nobody knows whether the module
    /// has something of an epoch that is over.
    is_judged: bool,
}

/// A peer whose task does not run yet, so that the service can hold its handle before.
pub struct Waiting {
    node: Node,
    handle: Peer,
    inputs: mpsc::Receiver<Input>,
    status: watch::Sender<Status>,
}

impl Waiting {
    /// A task for `node`.
    pub fn new(node: Node) -> Self {
        let (input, inputs) = mpsc::channel(MAX_INPUTS);
        let silent = Status {
            state: State::Silent,
            linked: [false; Class::COUNT],
            is_loose: false,
        };
        let (status, status_seen) = watch::channel(silent);
        Self {
            handle: Peer {
                node: node.id,
                input,
                status: status_seen,
            },
            node,
            inputs,
            status,
        }
    }

    /// Its handle.
    pub fn handle(&self) -> Peer {
        self.handle.clone()
    }

    /// Starts it, with that tie to this node.
    pub fn start(
        self,
        own: NodeId,
        dead_after: Duration,
        net: Arc<Net>,
        module: Kmod,
        service: Arc<dyn Service>,
        tie: Tie,
    ) {
        let side = if own < self.node.id {
            Side::Dials {
                control: Relink::default(),
                links: Default::default(),
            }
        } else {
            Side::Accepts {
                serials: [0; Class::COUNT],
                ask_ms: [None; Class::COUNT],
            }
        };
        let dead_after_ms = u64::try_from(dead_after.as_millis()).unwrap_or(u64::MAX);
        let task = Task {
            peer: self.node,
            net,
            module,
            service,
            input: self.handle.input.downgrade(),
            start: Instant::now(),
            side,
            liveness: Liveness::new(0, dead_after_ms),
            status: self.status,
            tell_death_ms: None,
            sockets: [const { None }; Class::COUNT],
            look_ms: [None; Class::COUNT],
            early: [const { None }; Class::COUNT],
            conn: None,
            conns: 0,
            instance: None,
            pending: HashMap::new(),
            calls: 0,
            served: Arc::new(Semaphore::new(MAX_SERVED)),
            questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
            agreeing: Arc::new(Semaphore::new(MAX_SERVED)),
            complaint: String::new(),
            removed: false,
            tie,
            proven_until_ms: None,
            is_judged: false,
        };
        tokio::spawn(task.run(self.inputs));
    }
}

impl Task {
    async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        loop {
            self.act().await;
            if self.removed && self.tell_death_ms.is_none() {
                return;
            }
            let due = self
                .due_ms()
                .map(|ms| self.start + Duration::from_millis(ms));
            let sleep = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => self.take(input).await,
                    None => return,
                },
                () = sleep => {}
            }
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn is_bound(&self) -> bool {
        matches!(self.tie, Tie::Bound(_))
    }

    /// When [`Task::act`] has something to do next.
    fn due_ms(&self) -> Option<u64> {
        let proven = self.proven_until_ms.filter(|_| self.conn.is_some());
        let mut due = vec![self.liveness.due_ms(), self.tell_death_ms, proven];
        due.extend(self.look_ms);
        match (&self.side, &self.conn) {
            (Side::Dials { control, .. }, None) => due.push(control.due_ms()),
            (_, Some(_)) if !self.is_bound() => {}
            (Side::Dials { links, .. }, Some(_)) => due.extend(links.iter().map(Relink::due_ms)),
            (Side::Accepts { ask_ms, .. }, Some(_)) => due.extend(ask_ms),
            (Side::Accepts { .. }, None) => {}
        }
        due.into_iter().flatten().min()
    }

    /// Does what is due.
    async fn act(&mut self) {
        let now = self.now_ms();
        if let Some(state) = self.liveness.wake(now) {
            self.entered(state, now);
        }
        if self.conn.is_some() && self.proven_until_ms.is_some_and(|at| at <= now) {
            // Whoever has another by now, as it should, is here again at once. One that has none is soon dead.
            tracing::info!(peer = %self.peer.id, "its certificate has run out since it connected");
            self.disconnect(now);
        }
        if self.tell_death_ms.is_some_and(|at| at <= now) {
            self.tell_death_ms = match self.module.peer_dead(self.peer.id).await {
                Ok(()) => None,
                Err(e) => {
                    tracing::error!(peer = %self.peer.id, "cannot tell the module of its death: {:#}", anyhow::Error::from(e));
                    Some(now + RETRY_MS)
                }
            };
        }
        for class in Class::ALL {
            let look = &mut self.look_ms[class as usize];
            if look.is_some_and(|at| at <= now) {
                *look = None;
                if self.is_broken(class) {
                    self.link_broke(class, now);
                }
            }
        }
        let is_loose = self.is_judged && !self.is_bound() && self.tell_death_ms.is_none();
        self.status
            .send_if_modified(|s| std::mem::replace(&mut s.is_loose, is_loose) != is_loose);
        // A link that came after a death must not reach the module before the news of it.
        if self.removed || self.tell_death_ms.is_some() {
            return;
        }
        match &mut self.side {
            Side::Dials { control, .. } if self.conn.is_none() => {
                if control.start(now).is_some() {
                    self.dial_control();
                }
            }
            _ if !matches!(self.tie, Tie::Bound(_)) => {}
            Side::Dials { links, .. } => {
                let begun = Class::ALL.map(|class| (class, links[class as usize].start(now)));
                for (class, serial) in begun {
                    if let Some(serial) = serial {
                        self.dial_link(class, serial);
                    }
                }
            }
            Side::Accepts { serials, ask_ms } => {
                let Some(conn) = &self.conn else { return };
                for class in Class::ALL {
                    let i = class as usize;
                    if ask_ms[i].is_some_and(|at| at <= now) {
                        conn.say(Body::Relink(RelinkMessage {
                            class: class as u32,
                            serial: serials[i],
                        }));
                        ask_ms[i] = Some(now + ASK_AGAIN_MS);
                    }
                }
            }
        }
    }

    fn entered(&mut self, state: State, now: u64) {
        let peer = self.peer.id;
        // Whoever looks sees the state; nobody has to.
        self.status.send_modify(|s| s.state = state);
        match state {
            State::Up => tracing::info!(%peer, "peer is up"),
            State::Silent => tracing::info!(%peer, "peer is silent"),
            State::Dead => {
                tracing::warn!(%peer, "peer is declared dead");
                self.disconnect(now);
                self.forsake(now);
            }
        }
    }

    /// All that the modules have to do with each other ends, as if the peer was dead.
    fn forsake(&mut self, now: u64) {
        self.tell_death_ms = Some(now);
        self.links_lost(now);
        tokio::spawn(Arc::clone(&self.service).died(self.peer.id));
    }

    fn disconnect(&mut self, now: u64) {
        self.conn = None;
        // Dropping them tells those who wait.
        self.pending.clear();
        if let Side::Dials { control, .. } = &mut self.side {
            control.want(now);
        }
    }

    fn links_lost(&mut self, now: u64) {
        self.status
            .send_modify(|s| s.linked = [false; Class::COUNT]);
        self.sockets = [const { None }; Class::COUNT];
        for class in Class::ALL {
            self.link_lost(class, now);
        }
    }

    /// Whether the socket the module got last is of no use, or there was none.
    fn is_broken(&self, class: Class) -> bool {
        let Some(socket) = &self.sockets[class as usize] else {
            return true;
        };
        // The crate has no name for this one, and so none for a result that holds it.
        let ended = PollFlags::from_bits_retain(libc::POLLRDHUP);
        let mut fds = [PollFd::new(socket.as_fd(), ended)];
        // What cannot be told is taken for broken: another link does no harm.
        poll(&mut fds, PollTimeout::ZERO).is_err() || fds[0].revents().is_none_or(|r| !r.is_empty())
    }

    fn link_broke(&mut self, class: Class, now: u64) {
        tracing::info!(peer = %self.peer.id, ?class, "link broke");
        self.status
            .send_modify(|s| s.linked[class as usize] = false);
        self.link_lost(class, now);
    }

    /// Another link of `class` is needed.
    fn link_lost(&mut self, class: Class, now: u64) {
        match &mut self.side {
            Side::Dials { links, .. } => links[class as usize].want(now),
            Side::Accepts { ask_ms, .. } => ask_ms[class as usize] = Some(now),
        }
    }

    fn dial_control(&self) {
        let (net, peer, input) = (Arc::clone(&self.net), self.peer.clone(), self.input.clone());
        tokio::spawn(async move {
            let result = net.dial_control(&peer).await;
            let news = result.map_or_else(
                |e| Input::ControlFailed(format!("{:#}", anyhow::Error::from(e))),
                Input::Opened,
            );
            if let Some(input) = input.upgrade() {
                let _ = input.send(news).await;
            }
        });
    }

    fn dial_link(&self, class: Class, serial: u64) {
        let Tie::Bound(pair) = self.tie else { return };
        let (net, peer, input) = (Arc::clone(&self.net), self.peer.clone(), self.input.clone());
        tokio::spawn(async move {
            let result = net.dial_link(&peer, class, serial, pair).await;
            let news = result.map_or_else(
                |e| Input::LinkFailed(class, format!("{:#}", anyhow::Error::from(e))),
                Input::Opened,
            );
            if let Some(input) = input.upgrade() {
                let _ = input.send(news).await;
            }
        });
    }

    async fn take(&mut self, input: Input) {
        let now = self.now_ms();
        if self.removed {
            return;
        }
        match input {
            Input::Removed => {
                tracing::info!(peer = %self.peer.id, "peer is no node of the cluster any more");
                self.entered(State::Dead, now);
                self.removed = true;
            }
            Input::Tied => self.tie(self.net.roster().tie(self.peer.id), now),
            Input::Say(body) => {
                if let Some(conn) = &self.conn {
                    conn.say(body);
                }
            }
            Input::Conn(id, heard) => {
                if self.conn.as_ref().is_some_and(|c| c.id == id) {
                    self.heard(heard, now);
                }
            }
            Input::Opened(Opened::Control { session, instance }) => {
                self.connected(*session, instance, now);
                for class in Class::ALL {
                    let early = self.early[class as usize].take();
                    if let Some(early) = early.filter(|e| e.instance == instance) {
                        self.hand_down(class, early.serial, early.socket).await;
                    }
                }
            }
            Input::Opened(Opened::Link {
                class,
                serial,
                instance,
                socket,
            }) => {
                let is_known = self.instance == Some(instance);
                if is_known || matches!(self.side, Side::Dials { .. }) {
                    self.hand_down(class, serial, socket).await;
                } else {
                    self.early[class as usize] = Some(Early {
                        instance,
                        serial,
                        socket,
                    });
                }
            }
            Input::ControlFailed(why) => {
                if why != self.complaint {
                    tracing::info!(peer = %self.peer.id, "no control connection: {why}");
                    self.complaint = why;
                }
                if let Side::Dials { control, .. } = &mut self.side {
                    control.failed(now);
                }
            }
            Input::LinkFailed(class, why) => {
                tracing::info!(peer = %self.peer.id, ?class, "no link: {why}");
                if let Side::Dials { links, .. } = &mut self.side {
                    links[class as usize].failed(now);
                }
            }
            Input::LinkLost(class) => {
                // The news may be of a socket that was replaced since.
                if self.is_broken(class) {
                    self.link_broke(class, now);
                } else {
                    self.look_ms[class as usize] = Some(now + LOOK_AGAIN_MS);
                }
            }
            Input::LinkWorn(class) => self.link_lost(class, now),
            Input::Ask(request, answers) => self.ask(request, answers),
        }
    }

    /// Another tie: what belongs to the one before is over.
    fn tie(&mut self, tie: Tie, now: u64) {
        let is_first = !std::mem::replace(&mut self.is_judged, true);
        let before = std::mem::replace(&mut self.tie, tie);
        if before == tie && !is_first {
            return;
        }
        let ends = match before {
            Tie::Bound(_) => before != tie,
            Tie::Loose | Tie::Cut => is_first && !self.is_bound(),
        };
        if tie == Tie::Cut
            && let Some(state) = self.liveness.declare_dead()
        {
            self.entered(state, now);
        } else if ends && self.liveness.state() != State::Dead {
            self.forsake(now);
        }
    }

    fn connected(&mut self, session: Session, instance: u64, now: u64) {
        self.conns += 1;
        self.complaint.clear();
        self.pending.clear();
        let Some(input) = self.input.upgrade() else {
            return;
        };
        let proof = session.peer_certificate().map(|c| pki::expires(c));
        let good_for = |end: u64| end.saturating_sub(now_ms());
        self.proven_until_ms = proof.and_then(Result::ok).map(|end| now + good_for(end));
        self.conn = Some(Conn::start(
            session,
            self.peer.id,
            self.conns,
            input,
            Arc::clone(self.net.audit().clock()),
        ));
        if let Side::Dials { control, .. } = &mut self.side {
            control.made(now);
        }
        if self.instance.replace(instance) != Some(instance) {
            // Another run of its daemon, or of ours: the numbers begin anew. What the module has
            // may still work, but nobody here knows.
            match &mut self.side {
                Side::Dials { .. } => self.links_lost(now),
                Side::Accepts { serials, ask_ms } => {
                    self.status
                        .send_modify(|s| s.linked = [false; Class::COUNT]);
                    *serials = [0; Class::COUNT];
                    *ask_ms = [None; Class::COUNT];
                }
            }
        }
        if let Some(state) = self.liveness.heard(now) {
            self.entered(state, now);
        }
    }

    async fn hand_down(&mut self, class: Class, serial: u64, socket: OwnedFd) {
        let peer = self.peer.id;
        if !self.is_bound() || self.tell_death_ms.is_some() {
            // The module has not heard of its death yet, which must come first; or it is not to hear
            // of the peer at all.
            drop(socket);
            let now = self.now_ms();
            match &mut self.side {
                Side::Dials { links, .. } => links[class as usize].failed(now),
                Side::Accepts { serials, ask_ms } => {
                    serials[class as usize] = serial;
                    ask_ms[class as usize] = Some(now + RETRY_MS);
                }
            }
            return;
        }
        let ours = socket.try_clone().ok();
        let result = self.module.link(peer, class, socket).await;
        self.sockets[class as usize] = ours;
        let now = self.now_ms();
        self.status
            .send_modify(|s| s.linked[class as usize] = result.is_ok());
        match &result {
            Ok(()) => tracing::info!(%peer, ?class, serial, "link handed to the module"),
            Err(e) => tracing::error!(%peer, ?class, "the module does not take the link: {e}"),
        }
        match (&mut self.side, result) {
            (Side::Dials { links, .. }, Ok(())) => links[class as usize].made(now),
            (Side::Dials { links, .. }, Err(_)) => links[class as usize].failed(now),
            (Side::Accepts { serials, ask_ms }, Ok(())) => {
                serials[class as usize] = serial;
                ask_ms[class as usize] = None;
            }
            (Side::Accepts { serials, ask_ms }, Err(_)) => {
                serials[class as usize] = serial;
                ask_ms[class as usize] = Some(now + RETRY_MS);
            }
        }
    }

    fn heard(&mut self, heard: Heard, now: u64) {
        let body = match heard {
            Heard::Said(body) => body,
            Heard::Offended(offence) => {
                self.service.offended(self.peer.id, offence);
                return;
            }
            Heard::Closed(why) => {
                tracing::info!(peer = %self.peer.id, "control connection lost: {why}");
                self.disconnect(now);
                return;
            }
        };
        if let Some(state) = self.liveness.heard(now) {
            self.entered(state, now);
        }
        match body {
            Body::Heartbeat(_) => {}
            Body::Hint(hint) => self.service.hinted(self.peer.id, hint.packet),
            Body::Relink(RelinkMessage { class, serial }) => {
                if let (Side::Dials { links, .. }, Some(class)) =
                    (&mut self.side, Class::from_u32(class))
                {
                    links[class as usize].want_after(serial, now);
                }
            }
            Body::Call(Call { id, request }) => self.serve(id, request),
            Body::Reply(Reply { id, answer }) => {
                let Some(answer) = answer else { return };
                if matches!(answer, Answer::Progress(_)) {
                    if let Some(answers) = self.pending.get(&id) {
                        let _ = answers.try_send(answer);
                    }
                } else if let Some(answers) = self.pending.remove(&id) {
                    // The last answer must not be lost behind progress nobody took yet.
                    tokio::spawn(async move { answers.send(answer).await });
                }
            }
        }
    }

    fn serve(&self, id: u64, request: Option<Request>) {
        let Some(conn) = &self.conn else { return };
        let replies = Replies {
            id,
            queue: conn.queue(),
        };
        let room = match request {
            Some(Request::Agree(_)) => &self.agreeing,
            Some(
                Request::List(_)
                | Request::Look(_)
                | Request::Recent(_)
                | Request::Why(_)
                | Request::Host(_),
            ) => &self.questions,
            _ => &self.served,
        };
        let permit = Arc::clone(room).try_acquire_owned();
        let (request, permit) = match (request, permit) {
            (Some(request), Ok(permit)) => (request, permit),
            (request, _) => {
                let text = match request {
                    None => "a request this node does not know",
                    Some(_) => "too many requests at once",
                };
                let failure = Failure::Unavailable(text.to_owned());
                // One that takes no answers gets none, and has nothing pile up here.
                conn.say(replies.body(Answer::Failed(Failed::from(&failure))));
                return;
            }
        };
        let served = Arc::clone(&self.service).serve(self.peer.id, request, replies);
        tokio::spawn(async move {
            served.await;
            drop(permit);
        });
    }

    fn ask(&mut self, request: Request, answers: mpsc::Sender<Answer>) {
        self.pending.retain(|_, a| !a.is_closed());
        let Some(conn) = &self.conn else { return };
        if self.pending.len() >= MAX_PENDING {
            return;
        }
        self.calls += 1;
        let call = Call {
            id: self.calls,
            request: Some(request),
        };
        if conn.say(Body::Call(call)) {
            self.pending.insert(self.calls, answers);
        }
    }
}
