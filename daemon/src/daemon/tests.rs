// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whole daemons, two of them in one process, with modules that only take notes.
//!
//! Each daemon has a runtime of its own, so that one can be killed as a power cut would. Their
//! links go without TLS, because the kernel the tests run on may have none; the control connection
//! has it.

mod certificates;
mod deaths;
mod hostile;
mod joining;
mod machines;
mod moving;
mod recovery;
mod seal;
mod services;

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use ssi::id::NodeId;
use ssi::uapi::{Attr, Attrs, Cmd, ProcRecord, Reason, Report, STATE_AWAY, STATE_GUEST, Writer};
use ssi::wire::Class;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zerocopy::{FromBytes, IntoBytes};

use super::*;
use crate::agree::{Timing, carrier};
use crate::api::govern::{InvitationReply, JoinReply};
use crate::api::{self, EventsReply, MigrateReply, NodesReply, PsReply, StatusReply, WhyReply};
use crate::core::hash::Hash;
use crate::core::hlc::Stamp;
use crate::core::state::{Command, Presence};
use crate::core::tie;
use crate::kmod::Channel;
use crate::msg;
use crate::netlink;
use crate::peer::Peer;
use crate::session::Session;
use crate::tls::testing::Authority;
use crate::varlink::{self, Client};

use machines::*;

#[test]
fn the_state_of_a_cluster_is_that_of_all_its_nodes() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let status = |of: &Running| -> StatusReply { of.call("Status", json!({})).unwrap() };
    let alone = status(&n1);
    assert_eq!(alone.health, api::DEGRADED);
    assert_eq!(alone.problems[0].text, "n2 is silent, say n1");
    assert_eq!((alone.nodes[1].round_trip_us, alone.nodes.len()), (None, 2));
    let n2 = pair.start(2);
    for of in [&n1, &n2] {
        wait_for("a whole cluster", || status(of).health == api::WHOLE);
    }
    let whole = status(&n2);
    assert_eq!(whole.problems, []);
    assert_eq!(whole.nodes[1].state, "self");
    assert!(whole.nodes[0].round_trip_us.is_some_and(|us| us > 0));
    let offset_us = whole.nodes[0].clock_offset_us.unwrap();
    assert!(offset_us.abs() < 1_000_000, "{offset_us}");
}

#[test]
fn another_certificate_is_used_for_the_next_connection() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let stranger = Authority::new().identity(1);
    n1.cluster().net().set_identity(Arc::new(stranger));
    // What stands, stands.
    assert_eq!(n1.state(2), "up");
    drop(n2);
    let n2 = pair.start(2);
    wait_for("a peer that turns us away", || n1.state(2) != "up");
    std::thread::sleep(Duration::from_secs(1));
    assert_ne!(n1.state(2), "up");
    assert!(n2.records().contains("connection-refused"));
    n1.cluster().net().set_identity(Arc::new(pair.identity(1)));
    wait_for("both up again", || {
        n1.state(2) == "up" && n2.state(1) == "up"
    });
}

#[test]
fn a_certificate_that_was_lost_on_the_way_is_made_again() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let member = || n1.council().state().nodes[&id(2)].clone();
    let (first, lost) = (member().fingerprint, Hash::of(b"lost"));
    let made = Command::Renewed {
        node: id(2),
        since: member().epoch,
        fingerprint: lost,
        generation: 0,
        ends_ms: None,
        now_ms: 0,
    };
    wait_for("a majority", || n1.council().status().has_majority);
    let runtime = Runtime::new().unwrap();
    runtime.block_on(n1.council().propose(made)).unwrap();
    wait_for("another, which it has", || {
        let now = member();
        ![first, lost].contains(&now.fingerprint) && !now.awaited
    });
    assert_eq!(member().earlier, [first, lost]);
    // And with that it is let in.
    drop(n2);
    let n2 = pair.start(2);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
}

#[test]
fn who_came_and_who_was_turned_away_is_recorded() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let mut stranger = TcpStream::connect(pair.addr(2)).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let log = |of: &Running| {
        let dir = of.socket.with_file_name("audit");
        let found = audit::verify(&dir, None).unwrap();
        assert_eq!(found.broken, None);
        of.records()
    };
    let admitted = |of: &Running, side: &str, purpose: &str| {
        let wanted = format!("\"purpose\":\"{purpose}\",\"incoming\":{side}");
        wait_for(&wanted, || log(of).contains(&wanted));
    };
    admitted(&n1, "false", "daemon");
    admitted(&n2, "true", "daemon");
    // Here the links go without TLS, and are accounted for all the same.
    admitted(&n2, "true", "link-memory");
    wait_for("the stranger", || {
        let log = log(&n2);
        log.contains("connection-refused") && log.contains("\"addr\":\"127.0.0.1:")
    });
}

#[test]
fn who_has_no_certificate_cannot_speak_as_a_node() {
    let pair = Pair::new();
    let n2 = pair.start(2);
    let hash = "sha256:".to_owned() + &"0".repeat(64);
    let joiner = tls::join_client(hash.parse().unwrap()).unwrap();
    let own = pair.identity(1);
    let mut bare = rustls::ClientConfig::clone(&own.client);
    bare.client_auth_cert_resolver = Arc::clone(&joiner.client_auth_cert_resolver);
    let runtime = Runtime::new().unwrap();
    let answer = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(pair.addr(2)).await.unwrap();
        let name = tls::server_name(NodeId::new(2).unwrap());
        let mut session = Session::connect(stream, Arc::new(bare), name)
            .await
            .unwrap();
        let preface = msg::Preface {
            version: msg::VERSION,
            node: 1,
            purpose: msg::Purpose::Control.into(),
            instance: 1,
            ..msg::Preface::default()
        };
        // It may have hung up before.
        let _ = session.send(&preface).await;
        session.receive::<msg::Preface>().await
    });
    assert!(answer.is_err(), "{answer:?}");
    let dir = n2.socket.with_file_name("audit");
    wait_for("a record of it", || {
        let files = std::fs::read_dir(&dir).unwrap();
        files
            .map(|f| std::fs::read_to_string(f.unwrap().path()).unwrap())
            .any(|log| log.contains("a node without a certificate"))
    });
}

#[test]
fn garbage_on_the_socket_and_the_port_ends_only_that_connection() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    for bytes in [
        &b"\0"[..],
        b"{}\0",
        b"GET / HTTP/1.1\r\n\r\n\0",
        &[0xff; varlink::MAX_CALL_BYTES + 1],
    ] {
        let mut s = UnixStream::connect(&n1.socket).unwrap();
        let _ = s.write_all(bytes);
        let _ = s.read_to_end(&mut Vec::new());
        let mut t = TcpStream::connect(pair.addr(1)).unwrap();
        let _ = t.write_all(bytes);
    }
    let e = n1.call::<serde_json::Value>("Nope", json!({})).unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.MethodNotFound")
    );
    let e = n1
        .call::<serde_json::Value>("Migrate", json!({ "pid": "x" }))
        .unwrap_err();
    assert!(
        matches!(e, varlink::Error::Reply { name, .. } if name == "org.varlink.service.InvalidParameter")
    );
    let mut client = Client::connect(&n1.socket, Some(PATIENCE)).unwrap();
    let info: serde_json::Value = client
        .call("org.varlink.service.GetInfo", &json!({}), drop)
        .unwrap();
    assert_eq!(info["interfaces"][1], api::INTERFACE);
    // Two nodes in its file, one not there: it is soon called silent, and nothing waits for it.
    assert_eq!(n1.state(2), "silent");
    let ps: PsReply = n1.call("Ps", json!({})).unwrap();
    assert_eq!(ps.missing, [2]);
}

#[test]
fn what_happens_anywhere_is_told_everywhere_in_order() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let events = |on: &Running| -> Vec<api::Event> {
        let reply: EventsReply = on.call_once("Events").unwrap();
        let stamps = reply.events.iter().map(|e| e.hlc.parse::<Stamp>().unwrap());
        assert!(stamps.is_sorted());
        reply.events
    };
    let links = |events: &[api::Event], node: u32| {
        let admitted = events
            .iter()
            .filter(|e| e.event == "node-admitted" && e.node == node);
        admitted.count()
    };
    // The connection of the daemons, and one of each class.
    let each = 1 + Class::COUNT;
    for on in [&n1, &n2] {
        wait_for("the links of both", || {
            let all = events(on);
            links(&all, 1) == each && links(&all, 2) == each
        });
    }
    // Those who watch are told at once, and for as long as they do.
    let (told, heard) = std::sync::mpsc::channel();
    let socket = n2.socket.clone();
    std::thread::spawn(move || {
        let mut client = Client::connect(&socket, None).unwrap();
        let method = format!("{}.Events", api::INTERFACE);
        let _ = client.call(&method, &json!({}), |reply: EventsReply| {
            let _ = told.send(reply.events);
        });
    });
    assert!(heard.recv_timeout(PATIENCE).unwrap().len() >= 2 * each);
    let _: serde_json::Value = n1
        .call("Cordon", json!({ "node": "2", "cordoned": true }))
        .unwrap();
    let news = heard.recv_timeout(PATIENCE).unwrap();
    let cordon = news.iter().find(|e| e.event == "governed").unwrap();
    assert_eq!((cordon.node, &cordon.rest["action"]), (1, &json!("Cordon")));
}
