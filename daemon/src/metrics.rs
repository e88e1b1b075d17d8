// SPDX-License-Identifier: MIT OR Apache-2.0

//! What monitoring asks over HTTP: `/metrics` for Prometheus, `/healthz`, `/readyz`. On loopback
//! unless the configuration says otherwise; it tells nothing that `ssictl` does not tell every user.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::cluster::Cluster;
use crate::core::state::State;
use crate::net::accepted;
use crate::roster::Entry;
use crate::stage::Stage;

/// Where it listens unless the configuration says otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7401";
/// Connections served at once; more are dropped.
const MAX_CONNECTIONS: usize = 16;
/// Longest wait for a request, and for one who asked to take the answer.
const REQUEST_IN: Duration = Duration::from_secs(10);
/// Pause before it is tried again to listen.
const BIND_AGAIN: Duration = Duration::from_secs(5);
/// A module that has not answered by then is ill.
const MODULE_IN: Duration = Duration::from_secs(5);
/// Longest head of a request.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// The text format of OpenMetrics, which Prometheus asks for.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";
/// Counters of the module that also fall.
const LEVELS: [&str; 3] = ["deputies", "guests", "tasks_inside"];

/// Answers on `addr` for as long as the daemon runs. That somebody else has that port, as any user may, keeps nothing
/// else from working: it is tried again.
pub async fn listen(addr: SocketAddr, stage: Arc<Stage>) {
    let mut told = false;
    loop {
        match TcpListener::bind(addr).await {
            Ok(listener) => return serve(listener, stage).await,
            Err(e) if !told => {
                tracing::error!("cannot listen on {addr} for metrics, and tries again: {e}");
                told = true;
            }
            Err(_) => {}
        }
        sleep(BIND_AGAIN).await;
    }
}

async fn serve(listener: TcpListener, stage: Arc<Stage>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Some((stream, _)) = accepted(listener.accept().await).await else {
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            // Who takes longer is cut off: the answer is all there is to wait for.
            let served = timeout(REQUEST_IN * 2, connection(stream, stage)).await;
            if let Ok(Err(e)) = served {
                tracing::debug!("a connection for metrics ended: {e}");
            }
            drop(permit);
        });
    }
}

/// Answers on one connection until its end.
pub(crate) async fn connection<S>(stream: S, stage: Arc<Stage>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let service = service_fn(|request: Request<Incoming>| {
        let stage = Arc::clone(&stage);
        async move { Ok::<_, Infallible>(answer(&request, &stage).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_IN)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

async fn answer(request: &Request<Incoming>, stage: &Stage) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let text = "only GET and HEAD\n".to_owned();
        return response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, text);
    }
    let verdict = |result: Result<(), String>| match result {
        Ok(()) => response(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        Err(why) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{why}\n")),
    };
    let cluster = stage.cluster().map_err(|f| f.to_string());
    match request.uri().path() {
        "/metrics" => {
            let text = match &cluster {
                Ok(c) => {
                    let state = c.council().map(|c| c.state()).unwrap_or_default();
                    let stats = stats(c).await.unwrap_or_default();
                    encoded(&c.roster().entries(), &state, &stats)
                }
                Err(_) => encoded(&[], &State::default(), &[]),
            };
            match text {
                Ok(text) => response(StatusCode::OK, OPEN_METRICS, text),
                Err(e) => response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{e}\n")),
            }
        }
        // A machine that is in no cluster lacks nothing.
        "/healthz" => verdict(match &cluster {
            Ok(c) => stats(c).await.map(drop),
            Err(_) if stage.has_seat() => {
                Err("this machine is a node, and does not work as one".to_owned())
            }
            Err(_) => Ok(()),
        }),
        "/readyz" => verdict(match &cluster {
            Ok(c) => stats(c).await.and_then(|_| has_majority(c)),
            Err(why) => Err(why.clone()),
        }),
        _ => {
            let text = "there are /metrics, /healthz and /readyz\n".to_owned();
            response(StatusCode::NOT_FOUND, PLAIN, text)
        }
    }
}

/// The counters of the module.
async fn stats(cluster: &Cluster) -> Result<Vec<(&'static str, u64)>, String> {
    match timeout(MODULE_IN, cluster.stats()).await {
        Ok(Ok(stats)) => Ok(stats),
        Ok(Err(e)) => Err(format!("the module: {e}")),
        Err(_) => Err("the module does not answer".to_owned()),
    }
}

/// Whether this node hears of a majority of those who vote.
fn has_majority(cluster: &Cluster) -> Result<(), String> {
    let council = cluster.council().map_err(|f| f.to_string())?;
    if council.status().has_majority {
        Ok(())
    } else {
        Err("no majority of the cluster is heard of".to_owned())
    }
}

/// All of it in the text format of OpenMetrics.
fn encoded(
    entries: &[Entry],
    state: &State,
    stats: &[(&'static str, u64)],
) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("unum");
    let build: Family<Vec<(&str, &str)>, Gauge> = Family::default();
    build
        .get_or_create(&vec![("version", env!("CARGO_PKG_VERSION"))])
        .set(1);
    registry.register("build_info", "The daemon's version", build);

    let up: Family<Vec<(&str, String)>, Gauge> = Family::default();
    for entry in entries.iter().filter(|e| e.peer.is_some()) {
        up.get_or_create(&vec![("peer", entry.node.id.to_string())])
            .set((entry.state_name() == "up").into());
    }
    registry.register("peer_up", "Whether another node is heard and linked", up);
    let accusers: Family<Vec<(&str, String)>, Gauge> = Family::default();
    let quarantined: Family<Vec<(&str, String)>, Gauge> = Family::default();
    let ends: Family<Vec<(&str, String)>, Gauge> = Family::default();
    for (node, member) in &state.nodes {
        let labels = vec![("node", node.to_string())];
        if let Some(ms) = state.ends_ms.get(&member.fingerprint) {
            let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
            ends.get_or_create(&labels).set(seconds);
        }
        let count = i64::try_from(member.conduct.accusers.len()).unwrap_or(i64::MAX);
        accusers.get_or_create(&labels).set(count);
        quarantined
            .get_or_create(&labels)
            .set(member.conduct.quarantined.into());
    }
    let help = "How many accuse a node of what no honest node does";
    registry.register("node_accusers", help, accusers);
    let help = "Whether most others accuse a node";
    registry.register("node_quarantined", help, quarantined);
    let help = "When the certificate of a node runs out, in seconds since 1970";
    registry.register("node_certificate_end_seconds", help, ends);
    registry.register("module_up", "Whether the module answers", {
        let gauge: Gauge = Gauge::default();
        gauge.set((!stats.is_empty()).into());
        gauge
    });
    for (name, value) in stats {
        let help = format!("{} of the module", name.replace('_', " "));
        if LEVELS.contains(name) {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(*value).unwrap_or(i64::MAX));
            registry.register(*name, help, gauge);
        } else {
            let counter: Counter = Counter::default();
            counter.inc_by(*value);
            registry.register(*name, help, counter);
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Node;
    use crate::peer::task::Waiting;
    use ssi::id::NodeId;

    fn entry(id: u16, own: bool) -> Entry {
        let node = Node {
            id: NodeId::new(id).unwrap(),
            name: format!("node{id}"),
            addr: ([10, 0, 0, 1], id).into(),
        };
        let peer = (!own).then(|| Waiting::new(node.clone()).handle());
        Entry { node, peer }
    }

    #[test]
    fn counters_rise_and_levels_have_no_total() {
        let entries = [entry(1, true), entry(2, false)];
        let none = State::default();
        let text = encoded(&entries, &none, &[("guests", 3), ("pages_pushed", 7)]).unwrap();
        for line in [
            "unum_peer_up{peer=\"n2\"} 0",
            "unum_guests 3",
            "unum_pages_pushed_total 7",
            "unum_module_up 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        let silent = encoded(&entries, &none, &[]).unwrap();
        assert!(silent.contains("unum_module_up 0\n"), "{silent}");
    }

    #[test]
    fn what_is_agreed_on_about_nodes_is_told() {
        let mut state = crate::core::state::tests::of_nodes(2);
        let member = state.nodes.get_mut(&NodeId::new(2).unwrap()).unwrap();
        member.conduct.quarantined = true;
        let fingerprint = member.fingerprint;
        state.ends_ms.insert(fingerprint, 1_700_000_000_999);
        let text = encoded(&[], &state, &[]).unwrap();
        for line in [
            "unum_node_accusers{node=\"n2\"} 0",
            "unum_node_quarantined{node=\"n1\"} 0",
            "unum_node_quarantined{node=\"n2\"} 1",
            "unum_node_certificate_end_seconds{node=\"n2\"} 1700000000",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}: {text}");
        }
        // Of one of which it is not known nothing is told.
        let unknown = "unum_node_certificate_end_seconds{node=\"n1\"}";
        assert!(!text.contains(unknown), "{text}");
    }

    #[test]
    fn the_levels_are_counters_of_the_module() {
        for name in LEVELS {
            assert!(ssi::uapi::STATS.contains(&name), "{name}");
        }
    }
}
