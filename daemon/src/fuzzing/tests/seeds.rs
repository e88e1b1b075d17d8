// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the corpus begins with: messages and files as they really are, and some that no node sends which
//! keeps to the rules.

mod nodes;
mod wire;

use serde_json::json;
use ssi::uapi::Reason;

use super::super::{authority, credentials, node, seat, tls};
use crate::agree::{self, Agreement, Timing};
use crate::core::facts::Facts;
use crate::core::hash::Hash;
use crate::core::kv;
use crate::core::offence::Offence;
use crate::core::state::{Candidate, Command, Unique, Why};
use crate::failure::Failure;
use crate::msg::govern::{Admit, Admitted, Agree, Certified, Hello};
use crate::msg::{
    self, Answer, Body, Call, Envelope, Failed, File, Heartbeat, Look, Migrate, Preface, Prepare,
    Purpose, Relink, Reply, Request, Seen, SeenNode,
};
use crate::pki::{self, Token};

const NOW_MS: u64 = 1_800_000_000_000;

type Seed = (&'static str, &'static str, Vec<u8>);

pub(super) fn all() -> Vec<Seed> {
    let mut all = Vec::new();
    all.extend(messages());
    all.extend(pki());
    all.extend(commands());
    all.extend(nodes::raft());
    all.extend(nodes::swim());
    all.extend(nodes::netlink());
    all.extend(wire::all());
    all.extend(tls());
    all.extend(texts());
    all.extend(files());
    all
}

fn facts() -> Facts {
    Facts {
        kernel: "7.3.4+deb13-amd64 #1 SMP".to_owned(),
        wire: 3,
        features: ["avx2", "sse4_2"].map(str::to_owned).into(),
        xfeatures: 7,
        dead_after_ms: 5_000,
    }
}

fn token() -> Token {
    let text = "abcdef.abcdefghijklmnopqrstuvwxyz";
    text.parse().unwrap()
}

fn framed(messages: &[Envelope]) -> Vec<u8> {
    let mut out = Vec::new();
    messages
        .iter()
        .for_each(|m| msg::encode(m, &mut out).unwrap());
    out
}

fn messages() -> Vec<Seed> {
    let call = |request| {
        Envelope::from(Body::Call(Call {
            id: 7,
            request: Some(request),
        }))
    };
    let reply = |answer| {
        Envelope::from(Body::Reply(Reply {
            id: 7,
            answer: Some(answer),
        }))
    };
    let one = |m: &dyn Fn(&mut Vec<u8>)| {
        let mut out = Vec::new();
        m(&mut out);
        out
    };
    let preface = Preface {
        version: msg::VERSION,
        node: 2,
        purpose: Purpose::Control.into(),
        instance: 5,
        serial: 6,
        facts: Some((&facts()).into()),
        ..Preface::default()
    };
    let admit = Admit {
        token: token().reveal(),
        request: pki::request().unwrap().1,
        name: "two".to_owned(),
        addr: "10.0.0.2:7400".to_owned(),
        facts: Some((&facts()).into()),
    };
    let admitted = Admitted {
        node: 2,
        since: 2,
        cluster: Unique(7).to_string(),
        certified: Some(Certified {
            certificate: "certificate".to_owned(),
            authorities: authority().1.clone(),
        }),
        members: Vec::new(),
    };
    let prepare = Prepare {
        token: 9,
        pid: 4711,
        home: 1,
        comm: "python3".to_owned(),
        files: vec![File {
            path: b"/usr/bin/python3".to_vec(),
            sha256: vec![1; 32],
            size: 5_000_000,
        }],
        dirs: vec![b"/root".to_vec()],
        monotonic_ns: 1,
        boottime_ns: 2,
        uids: vec![1000; 4],
    };
    let seen = Seen {
        nodes: vec![SeenNode {
            node: 3,
            state: "alive".to_owned(),
        }],
        realtime_ns: 17,
    };
    let migrate = Migrate {
        pid: 4711,
        to: 2,
        uid: 1000,
        hops: 2,
        wait: true,
        is_admin: false,
    };
    let failures = [
        Failure::refused(Reason::FileKind, "socket"),
        Failure::declined("node-alive", "n2 is up"),
        Failure::Unavailable("n2 does not answer".to_owned()),
        Failure::NoNode("n9".to_owned()),
    ];
    let failed: Vec<Envelope> = failures
        .iter()
        .map(|f| reply(Answer::Failed(Failed::from(f))))
        .collect();
    let hello = Hello {
        version: msg::VERSION,
        realtime_ns: 17,
    };
    let envelopes = [
        Body::Heartbeat(Heartbeat {}).into(),
        Body::Relink(Relink {
            class: 1,
            serial: 900,
        })
        .into(),
        call(Request::Prepare(prepare)),
        call(Request::Migrate(migrate)),
        call(Request::Look(Look {})),
        reply(Answer::Seen(seen)),
    ];
    let agree = Request::Agree(Agree {
        bytes: b"\"read-index\"".to_vec(),
        is_last: true,
        ..Agree::default()
    });
    vec![
        ("message", "control", framed(&envelopes)),
        ("message", "failures", framed(&failed)),
        (
            "message",
            "agree",
            framed(&[call(agree), call(Request::Admit(admit.clone()))]),
        ),
        (
            "message",
            "admitted",
            framed(&[reply(Answer::Admitted(admitted))]),
        ),
        (
            "message",
            "preface",
            one(&|out| msg::encode(&preface, out).unwrap()),
        ),
        (
            "message",
            "hello",
            one(&|out| msg::encode(&hello, out).unwrap()),
        ),
        (
            "message",
            "admit",
            one(&|out| msg::encode(&admit, out).unwrap()),
        ),
        (
            "join",
            "conversation",
            one(&|out| {
                msg::encode(&hello, out).unwrap();
                msg::encode(&admit, out).unwrap();
            }),
        ),
        ("join", "other-version", framed(&envelopes[..2])),
    ]
}

fn pki() -> Vec<Seed> {
    let (_, request) = pki::request().unwrap();
    let (_, ca_pem) = authority();
    let credentials = credentials(3);
    let der = pki::certificate::from_pem(ca_pem).unwrap().to_vec();
    let hash = pki::ca_hash(ca_pem).unwrap().to_string();
    vec![
        ("pki", "request", request),
        ("pki", "authority", der),
        ("pki", "authority-pem", ca_pem.clone().into_bytes()),
        ("pki", "node-pem", credentials.node.into_bytes()),
        ("pki", "token", token().reveal().into_bytes()),
        ("pki", "hash", hash.into_bytes()),
    ]
}

fn candidate(n: u16) -> Candidate {
    Candidate {
        node: node(n),
        name: format!("host-{n}"),
        addr: ([10, 0, 0, n.to_le_bytes()[0]], 7400).into(),
        fingerprint: Hash::of(&n.to_le_bytes()),
        ends_ms: Some(1_700_000_000_000),
        facts: facts(),
        nonce: Unique(n.into()),
    }
}

/// Two nodes, one of which goes.
fn life_of_a_cluster() -> Vec<Command> {
    vec![
        Command::Found {
            name: "here".to_owned(),
            id: Unique(7),
            ca: "first authority".to_owned(),
            sealed_key: vec![1, 2, 3],
            first: candidate(1),
            now_ms: NOW_MS,
        },
        Command::AddToken {
            id: token().id().to_owned(),
            secret: token().secret_hash(),
            expires_ms: NOW_MS + 1000,
            made_by_uid: 0,
            uses: 2,
            now_ms: NOW_MS,
        },
        Command::Join {
            token: token().id().to_owned(),
            secret: token().secret_hash(),
            candidate: candidate(2),
            generation: 0,
            now_ms: NOW_MS + 1,
        },
        Command::Rename {
            node: node(2),
            name: "two".to_owned(),
        },
        Command::SetAddr {
            node: node(2),
            addr: ([10, 0, 0, 9], 7400).into(),
        },
        Command::Cordon { node: node(2) },
        Command::Renewed {
            node: node(2),
            since: 2,
            fingerprint: Hash::of(b"renewed"),
            generation: 0,
            ends_ms: Some(NOW_MS + 7 * 86_400_000),
            now_ms: NOW_MS + 2,
        },
        Command::Adopted {
            node: node(2),
            since: 2,
            fingerprint: Hash::of(b"renewed"),
        },
        Command::Describe {
            node: node(2),
            since: 2,
            facts: candidate(2).facts,
        },
        Command::Kv(kv::Command {
            id: Unique(5),
            after: 0,
            name: "a".to_owned(),
            expected: None,
            value: Some(b"b".to_vec()),
        }),
        Command::DeclareDead {
            node: node(2),
            since: 2,
        },
        Command::ComeBack {
            node: node(2),
            ended: 3,
        },
    ]
}

fn end_of_a_cluster() -> Vec<Command> {
    vec![
        Command::BeginRotation {
            generation: 1,
            ca: "second authority".to_owned(),
            sealed_key: vec![4],
        },
        Command::FinishRotation { generation: 1 },
        Command::Uncordon { node: node(2) },
        Command::Remove {
            node: node(2),
            since: 2,
            why: Why::Dead,
            now_ms: NOW_MS + 2,
        },
        Command::Leave {
            node: node(1),
            since: 1,
            now_ms: NOW_MS + 3,
        },
        Command::DropToken {
            id: token().id().to_owned(),
        },
        Command::Revoke {
            fingerprint: Hash::of(b"x"),
        },
    ]
}

/// Of three nodes one is accused by both others, and pardoned.
fn quarantine() -> Vec<Command> {
    let accuse = |by| Command::Accuse {
        by: node(by),
        node: node(2),
        since: 2,
        offence: Offence::Unreadable,
    };
    let mut all = life_of_a_cluster();
    all.truncate(3);
    all.extend([
        Command::Join {
            token: token().id().to_owned(),
            secret: token().secret_hash(),
            candidate: candidate(3),
            generation: 0,
            now_ms: NOW_MS + 1,
        },
        accuse(1),
        accuse(3),
        Command::Pardon {
            node: node(2),
            since: 2,
        },
        Command::ComeBack {
            node: node(2),
            ended: 4,
        },
    ]);
    all
}

fn lines<T: serde::Serialize>(values: &[T]) -> Vec<u8> {
    let lines: Vec<Vec<u8>> = values
        .iter()
        .map(|v| serde_json::to_vec(v).unwrap())
        .collect();
    lines.join(&b'\n')
}

fn commands() -> Vec<Seed> {
    let mut all = life_of_a_cluster();
    let life = lines(&all);
    all.extend(end_of_a_cluster());
    vec![
        ("command", "life", life),
        ("command", "end", lines(&all)),
        ("command", "quarantine", lines(&quarantine())),
    ]
}

fn tls() -> Vec<Seed> {
    let (mut client, mut server) = (tls::connecting(), tls::accepting());
    client.advance().unwrap();
    let hello = std::mem::take(&mut client.outgoing);
    server.incoming.extend_from_slice(&hello);
    server.advance().unwrap();
    let behind = |how: u8, bytes: &[u8]| [&[how], bytes].concat();
    vec![
        ("tls", "hello", behind(0, &hello)),
        ("tls", "answer", behind(1, &server.outgoing)),
        ("tls", "shaken", behind(2, &[])),
        ("tls", "finish", behind(2, &[0, 0, 0, 0, 9, 1])),
        ("tls", "certificate", behind(3, &[4, 200, 1])),
    ]
}

fn texts() -> Vec<Seed> {
    let calls = |all: &[serde_json::Value]| {
        let all: Vec<String> = all.iter().map(|call| format!("{call}\0")).collect();
        all.concat().into_bytes()
    };
    let call = |method: &str, parameters: serde_json::Value| json!({"method": format!("io.unum.Cluster.{method}"), "parameters": parameters});
    let asked = calls(&[
        json!({"method": "org.varlink.service.GetInfo"}),
        json!({"method": "org.varlink.service.GetInterfaceDescription",
            "parameters": {"interface": "io.unum.Cluster"}}),
        call("Version", json!({})),
        json!({"method": "io.unum.Cluster.Ps", "oneway": true}),
        json!({"method": "io.unum.Cluster.Nope"}),
        json!({"method": ""}),
    ]);
    let wanted = calls(&[
        call("Migrate", json!({"pid": 1, "to": "n2", "wait": true})),
        call("Why", json!({"pid": 1})),
        call("Nodes", json!({})),
        call("Status", json!({})),
        call("ShowNode", json!({"node": "n1"})),
        call("Init", json!({"name": "here"})),
        call(
            "Join",
            json!({"door": "10.0.0.1", "token": "a.b", "ca_hash": "sha256:00"}),
        ),
        call("CreateToken", json!({"ttl_s": 5, "uses": 1})),
        call("DropToken", json!({"id": "abcdef"})),
        call("Tokens", json!({})),
        call("Leave", json!({"force": true})),
        call("Remove", json!({"node": "n1"})),
        call("Cordon", json!({"node": "n1", "cordoned": true})),
        call("Pardon", json!({"node": "n1"})),
        call("RotateAuthority", json!({})),
        call("Recover", json!({"without": ["n2", "n3"]})),
    ]);
    let config = "# All keys.\nstate = \"/var/lib/ssid\"\nport = 7400\npeer_dead_after_s = 10\n\
        certificate_life_s = 604800\nsocket = \"/run/ssid/io.unum.Cluster\"\nlog = \"info\"\n\
        audit = \"/var/lib/ssid/audit\"\nmetrics = \"127.0.0.1:9400\"\nplain_links = false\n\n\
        [guests]\nhost = true\nroot = false\nuids = [\"1000-1999\", \"4000\"]\n";
    let own = "u65534/mine";
    let node = [
        b"+",
        &*calls(&[
            call(
                "Acquire",
                json!({"name": own, "mode": "write", "wait_ms": 100, "ttl_ms": 3000}),
            ),
            call("Renew", json!({})),
            call("Locks", json!({})),
            call("Release", json!({"name": own})),
            call("Acquire", json!({"name": "theirs", "mode": "read"})),
            call("SetValue", json!({"name": "a", "value": "eA=="})),
            call("GetValue", json!({"name": "a"})),
            call("ListValues", json!({"prefix": ""})),
            call("DeleteValue", json!({"name": "a"})),
            json!({"method": "io.unum.Cluster.WatchValues", "parameters": {"prefix": "", "after": 0}, "more": true}),
        ]),
    ];
    let node = node.concat();
    let asked_node = [b"+", &*asked].concat();
    let wanted_node = [b"+", &*wanted].concat();
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: n1\r\nAccept: */*\r\n\r\n").into_bytes();
    vec![
        ("http", "metrics", get("/metrics")),
        ("http", "ready", get("/readyz")),
        ("http", "old", b"GET /healthz HTTP/1.0\r\n\r\n".to_vec()),
        ("http", "post", b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n".to_vec()),
        ("varlink", "node", node),
        ("varlink", "asked-node", asked_node),
        ("varlink", "wanted-node", wanted_node),
        ("varlink", "asked", asked),
        ("varlink", "wanted", wanted),
        ("config", "all", config.into()),
        ("config", "off", "metrics = \"off\"\n".into()),
        ("config", "address", "[fd00::1]:7400".into()),
    ]
}

fn files() -> Vec<Seed> {
    let behind = |digit: u8, bytes: &[u8]| [&[digit], bytes].concat();
    let text = |value: serde_json::Value| serde_json::to_vec_pretty(&value).unwrap();
    let credentials = credentials(2);
    let a_try = json!({
        "ca_hash": pki::ca_hash(&credentials.ca).unwrap().to_string(),
        "key": "key", "request": "AQI=",
    });
    let seat = serde_json::to_value(seat::seat()).unwrap();
    let events = lines(&[
        json!({"time": "2026-01-01T00:00:00Z", "node": 1, "event": "started", "version": "0.1.0"}),
        json!({"time": "2026-01-01T00:00:01Z", "node": 1, "event": "stopped"}),
    ]);
    let mut chain = Vec::new();
    let head = crate::core::chain::Head::default();
    crate::core::chain::seal(head, &json!({"event": "stopped"}), &mut chain).unwrap();
    let (log, snapshot) = agreed();
    vec![
        ("seat", "seat", behind(b'0', &text(seat))),
        ("seat", "join", behind(b'1', &text(a_try))),
        ("seat", "ca", behind(b'2', credentials.ca.as_bytes())),
        ("seat", "node", behind(b'3', credentials.node.as_bytes())),
        ("seat", "seal", behind(b'4', &[7; 32])),
        ("audit", "events", [b"+\0".as_slice(), &events].concat()),
        ("audit", "cut", [b"+\x09".as_slice(), &events].concat()),
        ("audit", "file", chain),
        ("log", "log", behind(b'l', &log)),
        ("log", "snapshot", behind(b's', &snapshot)),
        (
            "log",
            "records",
            [b"l+\0".as_slice(), &records(&log)].concat(),
        ),
        (
            "log",
            "cut",
            [b"l+\x20".as_slice(), &records(&log)].concat(),
        ),
        (
            "log",
            "state",
            [b"s+\0".as_slice(), &records(&snapshot)].concat(),
        ),
    ]
}

/// The log and the snapshot of a node that founded a cluster.
fn agreed() -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let timing = Timing {
        snapshot_entries: 8,
        ..Timing::default()
    };
    runtime.block_on(async {
        let carrier = std::sync::Arc::new(super::super::raft::Cut);
        agree::begin(dir.path(), node(1)).unwrap();
        let agreement = Agreement::open(dir.path(), node(1), carrier, timing)
            .await
            .unwrap();
        agreement.found().await.unwrap();
        for command in life_of_a_cluster() {
            agreement.propose(command).await.unwrap();
        }
        while !dir.path().join("snapshot").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        agreement
            .propose(Command::Uncordon { node: node(2) })
            .await
            .unwrap();
        agreement.stop().await;
    });
    let read = |name| std::fs::read(dir.path().join(name)).unwrap();
    (read("log"), read("snapshot"))
}

/// The JSON in the records of a file, a record a line.
fn records(file: &[u8]) -> Vec<u8> {
    let mut rest = &file[8..];
    let mut lines = Vec::new();
    while let Some((length, _)) = rest.split_first_chunk::<4>() {
        let end = 12 + usize::try_from(u32::from_le_bytes(*length)).unwrap();
        lines.push(rest[12..end].to_vec());
        rest = &rest[end..];
    }
    lines.join(&b'\n')
}
