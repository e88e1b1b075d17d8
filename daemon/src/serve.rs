// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon's end of the Varlink socket.

mod events;
mod govern;
mod lock;
mod outcome;
mod value;

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use self::outcome::{Nothing, Outcome, answer, invalid};
use crate::agree::lease::Session;
use crate::api::{self, DESCRIPTION, INTERFACE, MigrateReply, Migration, Times};
use crate::cluster::About;
use crate::core::health::{self, Problem};
use crate::core::state::State;
use crate::failure::Failure;
use crate::msg::{self, Migrated, Place};
use crate::net::accepted;
use crate::roster::Entry;
use crate::sockets::{self, Sockets};
use crate::stage::Stage;
use crate::user::User;
use crate::varlink::{self, Call, Frames, MAX_CALL_BYTES, Reply};

/// The interface every Varlink service has.
const SERVICE: &str = "org.varlink.service";
/// Its description.
const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");
/// Connections of one user at once.
const MAX_CONNECTIONS: usize = 64;
/// Connections of all users at once, beyond which only root gets more: files are needed for more than these.
const MAX_CONNECTIONS_OF_ALL: usize = 1024;
/// A client that takes nothing for so long is dropped.
const WRITE_IN: Duration = Duration::from_secs(30);
/// Phases that wait to be sent.
const MAX_PHASES: usize = 16;

/// The socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another daemon has it.
    #[error("another ssid listens on {0}")]
    Busy(PathBuf),
    /// It cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Makes the socket, unless it was kept. Every user may connect: what each may do is decided for each call.
///
/// # Errors
/// See [`Error`].
pub fn listen(path: &Path, sockets: &mut Sockets) -> Result<UnixListener, Error> {
    if let Some(listener) = sockets.tools(path) {
        return Ok(listener);
    }
    let failed = |source| Error::Listen {
        path: path.to_owned(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(Error::Busy(path.to_owned()));
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed)?;
    sockets::keep_tools(&listener);
    Ok(listener)
}

/// How many connections each user has.
#[derive(Clone, Debug, Default)]
struct Users(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection of a user, counted for as long as this lives.
struct Counted {
    users: Users,
    uid: u32,
}

impl Users {
    fn count(&self, uid: u32) -> Option<Counted> {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_all: usize = users.values().sum();
        if uid != 0 && of_all >= MAX_CONNECTIONS_OF_ALL {
            return None;
        }
        let n = users.entry(uid).or_default();
        if *n >= MAX_CONNECTIONS {
            return None;
        }
        *n += 1;
        Some(Counted {
            users: self.clone(),
            uid,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut users = self.users.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = users.get_mut(&self.uid) {
            *n -= 1;
            if *n == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// Serves the socket for as long as the daemon runs.
pub async fn serve(listener: UnixListener, stage: Arc<Stage>) {
    let users = Users::default();
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let user = match User::of(&stream) {
            Ok(user) => user,
            Err(e) => {
                tracing::warn!("cannot tell who connected: {e}");
                continue;
            }
        };
        let uid = user.uid;
        let Some(counted) = users.count(uid) else {
            tracing::warn!(
                uid,
                "too many connections of this user or of all: one dropped"
            );
            continue;
        };
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            if let Err(e) = converse(stream, stage, user).await {
                tracing::debug!(uid, "connection ended: {:#}", anyhow::Error::from(e));
            }
            drop(counted);
        });
    }
}

/// Serves one connection until its end.
pub(crate) async fn converse(
    stream: UnixStream,
    stage: Arc<Stage>,
    user: User,
) -> Result<(), varlink::Error> {
    let connection = Connection {
        stream,
        stage,
        user,
        session: None,
    };
    connection.run().await
}

struct Connection {
    stream: UnixStream,
    stage: Arc<Stage>,
    user: User,
    /// Holds its locks.
    session: Option<Session>,
}

/// The word for a node that most others accuse.
const QUARANTINED: &str = "quarantined";

impl Connection {
    async fn run(mut self) -> Result<(), varlink::Error> {
        let ended = self.talk().await;
        self.end_session().await;
        ended
    }

    async fn talk(&mut self) -> Result<(), varlink::Error> {
        let mut frames = Frames::new(MAX_CALL_BYTES);
        let mut chunk = vec![0; 4096];
        loop {
            while let Some(call) = frames.take::<Call>()? {
                let oneway = call.oneway == Some(true);
                let outcome = self.call(call).await?;
                if !oneway {
                    self.finish(outcome).await?;
                }
            }
            let n = self
                .stream
                .read(&mut chunk)
                .await
                .map_err(varlink::Error::Io)?;
            if n == 0 {
                return Ok(());
            }
            frames.push(&chunk[..n]);
        }
    }

    async fn send(&mut self, reply: &Reply) -> Result<(), varlink::Error> {
        let bytes = varlink::encode(reply)?;
        tokio::time::timeout(WRITE_IN, self.stream.write_all(&bytes))
            .await
            .map_err(|_| varlink::Error::Timeout)?
            .map_err(varlink::Error::Io)
    }

    async fn finish(&mut self, outcome: Outcome) -> Result<(), varlink::Error> {
        let reply = match outcome {
            Outcome::Done(parameters) => Reply {
                parameters: Some(parameters),
                ..Reply::default()
            },
            Outcome::Failed { error, parameters } => Reply {
                parameters: Some(parameters),
                error: Some(error),
                ..Reply::default()
            },
        };
        self.send(&reply).await
    }

    async fn call(&mut self, call: Call) -> Result<Outcome, varlink::Error> {
        let Some((interface, method)) = call.method.rsplit_once('.') else {
            return Ok(Outcome::service_error(
                "InterfaceNotFound",
                "interface",
                &call.method,
            ));
        };
        let parameters = call.parameters.unwrap_or_else(|| json!({}));
        if interface == INTERFACE
            && let Some(outcome) = self.govern(method, parameters.clone()).await
        {
            return Ok(outcome);
        }
        let more = call.more == Some(true) && call.oneway != Some(true);
        if interface == INTERFACE {
            if let Some(outcome) = self.lock(method, &parameters).await {
                return Ok(outcome);
            }
            if let Some(outcome) = self.value(method, &parameters, more).await? {
                return Ok(outcome);
            }
        }
        Ok(match (interface, method) {
            (INTERFACE, "Migrate") => match serde_json::from_value(parameters) {
                Ok(p) => self.migrate(p, more).await?,
                Err(e) => invalid(&e),
            },
            (INTERFACE, "Why") => match serde_json::from_value(parameters) {
                Ok(p) => self.why(p).await,
                Err(e) => invalid(&e),
            },
            (INTERFACE, "Ps") => self.ps().await.unwrap_or_else(Outcome::from),
            (INTERFACE, "Nodes") => self.nodes().unwrap_or_else(Outcome::from),
            (INTERFACE, "Status") => self.status().await.unwrap_or_else(Outcome::from),
            (INTERFACE, "Events") => self.events(more).await?,
            (INTERFACE, "Version") => Outcome::done(&api::VersionReply {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                netlink: ssi::uapi::VERSION.into(),
                protocol: msg::VERSION,
                node: self.stage.cluster().map_or(0, |c| c.own().get().into()),
            }),
            (SERVICE, "GetInfo") => Outcome::Done(json!({
                "vendor": "Unum",
                "product": "ssid",
                "version": env!("CARGO_PKG_VERSION"),
                "url": "",
                "interfaces": [SERVICE, INTERFACE],
            })),
            (SERVICE, "GetInterfaceDescription") => match parameters["interface"].as_str() {
                Some(INTERFACE) => Outcome::Done(json!({ "description": DESCRIPTION })),
                Some(SERVICE) => Outcome::Done(json!({ "description": SERVICE_DESCRIPTION })),
                Some(other) => Outcome::service_error("InterfaceNotFound", "interface", other),
                None => Outcome::service_error("InvalidParameter", "parameter", "interface"),
            },
            (INTERFACE | SERVICE, _) => {
                Outcome::service_error("MethodNotFound", "method", &call.method)
            }
            _ => Outcome::service_error("InterfaceNotFound", "interface", interface),
        })
    }

    async fn migrate(
        &mut self,
        p: api::MigrateParameters,
        more: bool,
    ) -> Result<Outcome, varlink::Error> {
        let found = self.stage.cluster().and_then(|c| Ok((c.find(&p.to)?, c)));
        let (to, cluster) = match found {
            Ok(found) => found,
            Err(f) => return Ok(f.into()),
        };
        let about = About::new(p.pid, self.user);
        let wait = p.wait.unwrap_or(false);
        let (sender, mut phases) = mpsc::channel::<String>(MAX_PHASES);
        // A task of its own: the move goes on when the client does not.
        let task = tokio::spawn(async move {
            cluster
                .migrate(about, to, wait, &|phase| {
                    let _ = sender.try_send(phase.to_owned());
                })
                .await
        });
        while let Some(phase) = phases.recv().await {
            if more {
                let parameters = serde_json::to_value(MigrateReply {
                    phase: Some(phase),
                    migration: None,
                })?;
                self.send(&Reply {
                    parameters: Some(parameters),
                    continues: Some(true),
                    error: None,
                })
                .await?;
            }
        }
        Ok(match task.await {
            Ok(Ok(m)) => Outcome::done(&MigrateReply {
                phase: None,
                migration: Some(migration(m)),
            }),
            Ok(Err(f)) => f.into(),
            Err(e) => Failure::Unavailable(e.to_string()).into(),
        })
    }

    /// What the nodes agree on now.
    async fn agreed(&self) -> Result<Arc<State>, Failure> {
        self.stage.cluster()?.council()?.read().await
    }

    async fn why(&self, p: api::WhyParameters) -> Outcome {
        let result = async {
            let cluster = self.stage.cluster()?;
            let to = p.to.as_deref().map(|t| cluster.find(t)).transpose()?;
            cluster.why(About::new(p.pid, self.user), to).await
        };
        match result.await {
            Ok(node) => Outcome::done(&api::WhyReply {
                pid: p.pid,
                node: node.get().into(),
                movable: true,
            }),
            Err(f) => f.into(),
        }
    }

    async fn ps(&self) -> Result<Outcome, Failure> {
        let (processes, missing) = self.stage.cluster()?.list().await?;
        Ok(Outcome::done(&api::PsReply {
            processes: processes.into_iter().map(process).collect(),
            missing: missing.into_iter().map(|n| n.get().into()).collect(),
        }))
    }

    async fn status(&self) -> Result<Outcome, Failure> {
        let cluster = self.stage.cluster()?;
        let views = cluster.look().await;
        let (status, state) = (cluster.council()?.status(), cluster.council()?.state());
        // What one says that is quarantined, and what others think of it, is no news.
        let mut heeded = views.clone();
        heeded.retain(|node, _| !state.is_quarantined(*node));
        let mut problems = health::problems(cluster.own(), &heeded);
        problems.extend(health::accusations(&state));
        problems.extend(health::other_times(cluster.own(), &state));
        if !status.has_majority {
            problems.push(Problem::NoMajority(cluster.own()));
        }
        let entries = cluster.roster().entries();
        let nodes = entries.iter().map(|e| {
            let view = views.get(&e.node.id).and_then(Option::as_ref);
            let clock = view.and_then(|v| v.clock);
            api::NodeStatus {
                id: e.node.id.get().into(),
                name: e.node.name.clone(),
                state: state_name(&state, e).to_owned(),
                round_trip_us: clock.map(|c| c.round_trip_us),
                clock_offset_us: clock.map(|c| c.offset_us),
            }
        });
        let health = if problems.is_empty() {
            api::WHOLE
        } else {
            api::DEGRADED
        };
        Ok(Outcome::done(&api::StatusReply {
            health: health.to_owned(),
            leader: status.leader.map(|n| n.get().into()),
            problems: problems.iter().map(problem).collect(),
            nodes: nodes.collect(),
        }))
    }

    fn nodes(&self) -> Result<Outcome, Failure> {
        let cluster = self.stage.cluster()?;
        let council = cluster.council()?;
        let state = council.state();
        let entries = cluster.roster().entries();
        let nodes = entries.iter().map(|e| api::Node {
            id: e.node.id.get().into(),
            name: e.node.name.clone(),
            addr: e.node.addr.to_string(),
            state: state_name(&state, e).to_owned(),
            role: council.role(e.node.id).to_owned(),
            cordoned: state.nodes.get(&e.node.id).is_some_and(|m| m.cordoned),
        });
        Ok(Outcome::done(&api::NodesReply {
            nodes: nodes.collect(),
        }))
    }
}

/// The word users see for a node.
fn state_name(state: &State, entry: &Entry) -> &'static str {
    match state.is_quarantined(entry.node.id) {
        true => QUARANTINED,
        false => entry.state_name(),
    }
}

/// A problem as part of the interface.
fn problem(p: &Problem) -> api::Problem {
    let (kind, node) = match p {
        Problem::Node { node, .. } => ("node-state", node),
        Problem::NoAnswer(node) => ("no-answer", node),
        Problem::ClockSkew { node, .. } => ("clock-skew", node),
        Problem::OtherTime { node, .. } => ("other-time", node),
        Problem::NoMajority(node) => ("no-majority", node),
        Problem::Accused {
            node,
            quarantined: true,
            ..
        } => (QUARANTINED, node),
        Problem::Accused { node, .. } => ("accused", node),
    };
    api::Problem {
        kind: kind.to_owned(),
        node: node.get().into(),
        text: p.to_string(),
    }
}

fn migration(m: Migrated) -> Migration {
    Migration {
        pid: m.pid,
        from: m.from,
        to: m.to,
        times: Times {
            digest_us: m.digest_us,
            prepare_us: m.prepare_us,
            frozen_us: m.frozen_us,
            sent_us: m.sent_us,
            ready_us: m.ready_us,
            committed_us: m.committed_us,
            filled_us: m.filled_us,
        },
        image_bytes: m.image_bytes,
        fetched_bytes: m.fetched_bytes,
        pushed_bytes: m.pushed_bytes,
    }
}

fn process(p: msg::Process) -> api::Process {
    let state = match p.place() {
        Place::Home => "home",
        Place::Away | Place::Guest => "away",
        Place::Moving => "moving",
        Place::Unknown => "unknown",
    };
    api::Process {
        pid: p.pid,
        node: p.node,
        home: p.home,
        state: state.to_owned(),
        forwarded: p.forwarded,
        threads: p.threads,
        comm: p.comm,
        missing_pages: p.missing_pages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_one_user_nor_all_have_every_connection() {
        let users = Users::default();
        let of = |uid: u32, n: usize| -> Vec<Counted> {
            std::iter::from_fn(|| users.count(uid)).take(n).collect()
        };
        assert_eq!(of(7, usize::MAX).len(), MAX_CONNECTIONS);
        let all: Vec<_> = (1..100).flat_map(|uid| of(uid, usize::MAX)).collect();
        assert_eq!(all.len(), MAX_CONNECTIONS_OF_ALL);
        // Somebody has to be able to see to it.
        assert_eq!(of(0, 1).len(), 1);
        drop(all);
        assert_eq!(of(7, 1).len(), 1);
    }
}
