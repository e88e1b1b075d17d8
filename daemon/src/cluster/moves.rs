// SPDX-License-Identifier: MIT OR Apache-2.0

//! Moves of processes, and whether they would move: asked for on any node, done by the one that runs the process.

use std::time::Duration;

use ssi::id::NodeId;
use ssi::uapi::Reason;

use super::{ASK_IN, Cluster, outcome};
use crate::audit;
use crate::core::liveness::State;
use crate::core::migrate::Phase;
use crate::core::route::{MAX_HOPS, Route, route};
use crate::depart::{Order, failure};
use crate::failure::Failure;
use crate::msg::{self, Answer, Host, Migrate, Migrated, Request};
use crate::peer::Peer;
use crate::proc::{self, Mark};
use crate::user::User;

/// Longest wait between two answers of a node that moves a process.
const MIGRATE_IN: Duration = Duration::from_secs(900);

/// What a move or a question about one is about.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// The process.
    pub pid: u32,
    /// Who asks.
    pub user: User,
    /// How often the question may be passed on.
    pub hops: u32,
}

impl About {
    /// Asked on this node.
    pub fn new(pid: u32, user: User) -> Self {
        Self {
            pid,
            user,
            hops: MAX_HOPS,
        }
    }

    /// For another node to do or answer; it is passed on once less from there. There must be a time left, as
    /// [`Cluster::next`] sees to.
    fn pass_on(self, to: Option<NodeId>, wait: bool) -> Migrate {
        Migrate {
            pid: self.pid,
            to: to.map_or(0, |n| n.get().into()),
            uid: self.user.uid,
            is_admin: self.user.is_admin,
            hops: self.hops - 1,
            wait,
        }
    }

    /// As another node passed it on.
    pub(super) fn passed_on(m: &Migrate) -> Self {
        Self {
            pid: m.pid,
            user: User {
                uid: m.uid,
                is_admin: m.is_admin,
            },
            hops: m.hops.min(MAX_HOPS),
        }
    }
}

/// Is told the phases of a migration by name.
pub type OnPhase<'a> = &'a (dyn Fn(&str) + Send + Sync);

impl Cluster {
    async fn route(&self, pid: u32) -> Result<Route, Failure> {
        let record = self
            .module
            .process(pid)
            .await
            .map_err(|e| failure(pid, e))?;
        Ok(route(self.own(), pid, record.as_ref(), proc::exists))
    }

    /// The peer to pass a question on to.
    fn next(&self, about: About, node: NodeId) -> Result<Peer, Failure> {
        if about.hops == 0 {
            return Err(Failure::Unavailable(format!(
                "process {} moves about too much to be found",
                about.pid
            )));
        }
        // A number of a node that the cluster does not have is nobody's.
        self.roster()
            .peer(node)
            .ok_or(Failure::NoProcess(about.pid))
    }

    /// Checks that the process may be moved by the one who asks.
    fn permitted(&self, about: About) -> Result<(), Failure> {
        if !proc::exists(about.pid) {
            return Err(Failure::NoProcess(about.pid));
        }
        if about.user.is_admin || proc::belongs_to(about.pid, about.user.uid) {
            Ok(())
        } else {
            Err(Failure::NotPermitted(about.pid))
        }
    }

    /// Moves a process, wherever it runs.
    ///
    /// # Errors
    /// Why it did not move, or why nobody knows.
    pub async fn migrate(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        match self.route(about.pid).await? {
            Route::Here => self.migrate_from_here(about, to, wait, on_phase).await,
            Route::Node(node) => {
                let peer = self.next(about, node)?;
                let request = about.pass_on(Some(to), wait);
                let mut answers = peer.ask(Request::Migrate(request)).await?;
                loop {
                    match tokio::time::timeout(MIGRATE_IN, answers.recv()).await {
                        Ok(Some(Answer::Progress(p))) => on_phase(&p.phase),
                        Ok(Some(Answer::Migrated(m))) => return Ok(m),
                        Ok(Some(Answer::Failed(f))) => return Err(f.into()),
                        _ => {
                            return Err(Failure::Unavailable(format!(
                                "lost contact with {node}; the move may still succeed"
                            )));
                        }
                    }
                }
            }
            Route::TooOld => Err(Failure::refused(Reason::TooOld, "")),
            Route::Nowhere => Err(Failure::NoProcess(about.pid)),
        }
    }

    async fn migrate_from_here(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        let result = self.move_from_here(about, to, wait, on_phase).await;
        self.audit.record(audit::Event::Migrate {
            pid: about.pid,
            to: to.get(),
            uid: about.user.uid,
            outcome: outcome(&result, audit::MOVED),
        });
        result
    }

    async fn move_from_here(
        &self,
        about: About,
        to: NodeId,
        wait: bool,
        on_phase: OnPhase<'_>,
    ) -> Result<Migrated, Failure> {
        let pid = about.pid;
        let seen = Mark::now(pid).ok_or(Failure::NoProcess(pid))?;
        let target = self.may_go(about, to)?;
        self.module.why(pid).await.map_err(|e| failure(pid, e))?;
        let home = NodeId::of_pid(pid).ok_or(Failure::NoProcess(pid))?;
        let order = Order {
            pid,
            home,
            from: self.own(),
            to,
            limited: (!about.user.is_admin).then_some(about.user.uid),
            wait,
        };
        let result = self
            .departures
            .migrate(order, seen, &target, &|phase: Phase| on_phase(phase.name()))
            .await;
        match &result {
            Ok(m) => tracing::info!(pid, %to, downtime_us = m.committed_us, "process moved"),
            Err(f) => tracing::info!(pid, %to, "process not moved: {f}"),
        }
        result
    }

    /// Whether a process that runs here may go to `to`, as far as that can be told without the
    /// module.
    fn may_go(&self, about: About, to: NodeId) -> Result<Peer, Failure> {
        self.permitted(about)?;
        if self.roster().with_ties(|ties| ties.is_fenced()) {
            return Err(Failure::refused(
                Reason::NoMajority,
                format!("{} is cut off", self.own()),
            ));
        }
        if to == self.own() {
            return Err(Failure::refused(Reason::AlreadyThere, ""));
        }
        let target = self
            .roster()
            .peer(to)
            .ok_or_else(|| Failure::NoNode(to.to_string()))?;
        if target.state() != State::Up {
            return Err(Failure::refused(
                Reason::NoLink,
                format!("{to} is {}", target.state_name()),
            ));
        }
        Ok(target)
    }

    /// Whether a process would move; returns the node that runs it.
    ///
    /// # Errors
    /// Why it would not.
    pub async fn why(&self, about: About, to: Option<NodeId>) -> Result<NodeId, Failure> {
        match self.route(about.pid).await? {
            Route::Here => {
                let target = match to {
                    Some(to) => Some(self.may_go(about, to)?),
                    None => self.permitted(about).map(|()| None)?,
                };
                self.module
                    .why(about.pid)
                    .await
                    .map_err(|e| failure(about.pid, e))?;
                if let (Some(target), Some(home)) = (target, NodeId::of_pid(about.pid)) {
                    let request = Host {
                        home: home.get().into(),
                        uids: proc::acts_as(about.pid),
                    };
                    target.ask_once(Request::Host(request), ASK_IN).await?;
                }
                Ok(self.own())
            }
            Route::Node(node) => {
                let peer = self.next(about, node)?;
                let request = about.pass_on(to, false);
                match peer.ask_once(Request::Why(request), ASK_IN).await? {
                    Answer::Movable(m) => {
                        msg::node(m.node).ok_or_else(|| Failure::unreachable(node))
                    }
                    _ => Err(Failure::unreachable(node)),
                }
            }
            Route::TooOld => Err(Failure::refused(Reason::TooOld, "")),
            Route::Nowhere => Err(Failure::NoProcess(about.pid)),
        }
    }
}
