// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon's end of the Varlink socket.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::api::{self, DESCRIPTION, ErrorParameters, INTERFACE, MigrateReply, Migration, Times};
use crate::cluster::{About, Cluster};
use crate::core::health::{self, Problem};
use crate::failure::{Failure, hint};
use crate::msg::{self, Migrated, Place};
use crate::varlink::{self, Call, Frames, MAX_CALL_BYTES, Reply};

/// The interface every Varlink service has.
const SERVICE: &str = "org.varlink.service";
/// Its description.
const SERVICE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");
/// Connections of one user at once.
const MAX_CONNECTIONS: usize = 64;
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

/// Makes the socket. Every user may connect: what each may do is decided for each call.
///
/// # Errors
/// See [`Error`].
pub fn listen(path: &Path) -> Result<UnixListener, Error> {
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
pub async fn serve(listener: UnixListener, cluster: Arc<Cluster>) {
    let users = Users::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("cannot accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(uid) = stream.peer_cred().map(|c| c.uid()) else {
            continue;
        };
        let Some(counted) = users.count(uid) else {
            tracing::warn!(uid, "too many connections of one user: one dropped");
            continue;
        };
        let cluster = Arc::clone(&cluster);
        tokio::spawn(async move {
            if let Err(e) = (Connection {
                stream,
                cluster,
                uid,
            })
            .run()
            .await
            {
                tracing::debug!(uid, "connection ended: {:#}", anyhow::Error::from(e));
            }
            drop(counted);
        });
    }
}

struct Connection {
    stream: UnixStream,
    cluster: Arc<Cluster>,
    uid: u32,
}

/// What a call comes to.
enum Outcome {
    Done(Value),
    Failed { error: String, parameters: Value },
}

impl Outcome {
    fn done(value: &impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Outcome::Done(value),
            Err(e) => Failure::Unavailable(e.to_string()).into(),
        }
    }

    fn service_error(name: &str, field: &str, value: &str) -> Self {
        Outcome::Failed {
            error: format!("{SERVICE}.{name}"),
            parameters: json!({ field: value }),
        }
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        let (error, parameters) = describe(&failure);
        Outcome::Failed {
            error: format!("{INTERFACE}.{error}"),
            parameters: json!(parameters),
        }
    }
}

/// A failure as an error of the interface.
fn describe(failure: &Failure) -> (&'static str, ErrorParameters) {
    let mut parameters = ErrorParameters {
        message: failure.to_string(),
        ..ErrorParameters::default()
    };
    let error = match failure {
        Failure::Refused(r) => {
            parameters.reason = Some(r.reason.code().to_owned());
            parameters.detail = (r.detail != 0).then_some(r.detail);
            parameters.text = (!r.text.is_empty()).then(|| r.text.clone());
            parameters.hint = Some(hint(r.reason).to_owned());
            api::error::REFUSED
        }
        Failure::NoProcess(_) => {
            parameters.hint = Some("`ssictl ps` lists the processes of the cluster".to_owned());
            api::error::NOT_FOUND
        }
        Failure::NoNode(_) => {
            parameters.hint = Some("`ssictl node ls` lists the nodes".to_owned());
            api::error::NOT_FOUND
        }
        Failure::NotPermitted(_) => {
            parameters.hint = Some("only its owner and root may move a process".to_owned());
            api::error::NOT_PERMITTED
        }
        Failure::Unavailable(_) => {
            parameters.hint = Some("`ssictl node ls` shows the state of the nodes".to_owned());
            api::error::UNAVAILABLE
        }
    };
    (error, parameters)
}

impl Connection {
    async fn run(mut self) -> Result<(), varlink::Error> {
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
        let more = call.more == Some(true) && call.oneway != Some(true);
        Ok(match (interface, method) {
            (INTERFACE, "Migrate") => match serde_json::from_value(parameters) {
                Ok(p) => self.migrate(p, more).await?,
                Err(e) => invalid(&e),
            },
            (INTERFACE, "Why") => match serde_json::from_value(parameters) {
                Ok(p) => self.why(p).await,
                Err(e) => invalid(&e),
            },
            (INTERFACE, "Ps") => self.ps().await,
            (INTERFACE, "Nodes") => self.nodes(),
            (INTERFACE, "Status") => self.status().await,
            (INTERFACE, "Version") => Outcome::done(&api::VersionReply {
                daemon: env!("CARGO_PKG_VERSION").to_owned(),
                netlink: ssi::uapi::VERSION.into(),
                protocol: msg::VERSION,
                node: self.cluster.own().get().into(),
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
        let to = match self.cluster.find(&p.to) {
            Ok(to) => to,
            Err(f) => return Ok(f.into()),
        };
        let about = About::new(p.pid, self.uid);
        let wait = p.wait.unwrap_or(false);
        let (sender, mut phases) = mpsc::channel::<String>(MAX_PHASES);
        let cluster = Arc::clone(&self.cluster);
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

    async fn why(&self, p: api::WhyParameters) -> Outcome {
        let result = async {
            let to = p.to.as_deref().map(|t| self.cluster.find(t)).transpose()?;
            self.cluster.why(About::new(p.pid, self.uid), to).await
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

    async fn ps(&self) -> Outcome {
        match self.cluster.list().await {
            Ok((processes, missing)) => Outcome::done(&api::PsReply {
                processes: processes.into_iter().map(process).collect(),
                missing: missing.into_iter().map(|n| n.get().into()).collect(),
            }),
            Err(f) => f.into(),
        }
    }

    async fn status(&self) -> Outcome {
        let views = self.cluster.look().await;
        let problems = health::problems(self.cluster.own(), &views);
        let nodes = self.cluster.nodes().map(|(n, state)| {
            let view = views.get(&n.id).and_then(Option::as_ref);
            let clock = view.and_then(|v| v.clock);
            api::NodeStatus {
                id: n.id.get().into(),
                name: n.name.clone(),
                state: state.unwrap_or("self").to_owned(),
                round_trip_us: clock.map(|c| c.round_trip_us),
                clock_offset_us: clock.map(|c| c.offset_us),
            }
        });
        let health = if problems.is_empty() {
            api::WHOLE
        } else {
            api::DEGRADED
        };
        Outcome::done(&api::StatusReply {
            health: health.to_owned(),
            problems: problems.iter().map(problem).collect(),
            nodes: nodes.collect(),
        })
    }

    fn nodes(&self) -> Outcome {
        let nodes = self
            .cluster
            .nodes()
            .map(|(n, state)| api::Node {
                id: n.id.get().into(),
                name: n.name.clone(),
                addr: n.addr.to_string(),
                state: state.unwrap_or("self").to_owned(),
            })
            .collect();
        Outcome::done(&api::NodesReply { nodes })
    }
}

/// A problem as part of the interface.
fn problem(p: &Problem) -> api::Problem {
    let (kind, node) = match p {
        Problem::Node { node, .. } => ("node-state", node),
        Problem::NoAnswer(node) => ("no-answer", node),
        Problem::ClockSkew { node, .. } => ("clock-skew", node),
    };
    api::Problem {
        kind: kind.to_owned(),
        node: node.get().into(),
        text: p.to_string(),
    }
}

fn invalid(e: &serde_json::Error) -> Outcome {
    Outcome::service_error("InvalidParameter", "parameter", &e.to_string())
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
