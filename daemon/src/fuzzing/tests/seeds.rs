// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the corpus begins with: messages and files as they really are.

use foca::{Header, Message};
use serde_json::json;
use ssi::id::NodeId;
use ssi::uapi::{Attr, Cmd, Reason, Writer};
use zerocopy::IntoBytes;

use super::super::{authority, credentials, node, seat, tls};
use crate::agree::{Agreement, Timing};
use crate::core::facts::Facts;
use crate::core::hash::Hash;
use crate::core::kv;
use crate::core::state::{Candidate, Command, State, Unique, Why};
use crate::core::swim::packet::{Packet, Word};
use crate::core::swim::{Life, Member};
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
    all.extend(raft());
    all.extend(swim());
    all.extend(netlink());
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
        nonce: vec![7; 16],
        facts: Some((&facts()).into()),
        ..Preface::default()
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
        message: b"\"read-index\"".to_vec(),
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
        },
        Command::Kv(kv::Command::Put {
            name: "a".to_owned(),
            text: "b".to_owned(),
        }),
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
    vec![("command", "life", life), ("command", "end", lines(&all))]
}

fn raft() -> Vec<Seed> {
    let vote = |node: u64, term: u64, committed: bool| json!({"leader_id": {"term": term, "node_id": node}, "committed": committed});
    let log_id = |term: u64, node: u64, index: u64| json!({"leader_id": {"term": term, "node_id": node}, "index": index});
    let append_of = |term: u64, prev: serde_json::Value, entries: serde_json::Value| {
        json!({"append": {"rpc": {
            "vote": vote(2, term, true), "prev_log_id": prev, "entries": entries,
            "leader_commit": log_id(term.min(5), 2, 1),
        }, "has_majority": true}})
    };
    let append = |prev, entries| append_of(5, prev, entries);
    let said = |messages: &[serde_json::Value]| {
        let lines: Vec<String> = messages.iter().map(|m| format!("2{m}")).collect();
        lines.join("\n").into_bytes()
    };
    let state = serde_json::to_value(State::default()).unwrap();
    let snapshot = json!({"snapshot": {
        "vote": vote(2, 5, true),
        "meta": {"last_log_id": log_id(5, 2, 9), "last_membership": {"log_id": null,
            "membership": {"configs": [[1, 2]], "nodes": {"1": {}, "2": {}}}}},
        "state": state,
    }});
    let ask = |kind: &str, term: u64| json!({kind: {"vote": vote(2, term, false), "last_log_id": log_id(1, 1, 9)}});
    let propose = json!({"propose": {"kv": {"put": {"name": "a", "text": "b"}}}});
    let transfer = json!({"transfer": {"from_leader": vote(2, 5, true), "to_node_id": 1,
        "last_log_id": log_id(5, 2, 1)}});
    let asked = said(&[
        json!("read-index"),
        propose,
        ask("pre-vote", 4),
        ask("vote", 5),
    ]);
    let appended = said(&[
        ask("vote", 5),
        append(serde_json::Value::Null, json!([])),
        append(
            log_id(1, 1, 1),
            json!([{"log_id": log_id(5, 2, 2), "payload": "Blank"}]),
        ),
        transfer,
    ]);
    vec![
        ("raft", "asked", asked),
        ("raft", "appended", appended.clone()),
        ("raft", "learner", [b"-".to_vec(), appended].concat()),
        ("raft", "snapshot", said(&[snapshot])),
        (
            "raft",
            "last-reign",
            said(&[ask("vote", u64::MAX), ask("pre-vote", u64::MAX)]),
        ),
        (
            "raft",
            "last-entry",
            said(&[append(log_id(5, 2, u64::MAX), json!([]))]),
        ),
    ]
}

fn packets(packets: &[(u8, Packet)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (from, packet) in packets {
        let bytes = packet.encode().unwrap();
        out.extend([20, *from]);
        out.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        out.extend(bytes);
    }
    out
}

fn swim() -> Vec<Seed> {
    let of = |node| Life::first(Member { node, epoch: 1 });
    let packet = |src: u8, message, words| {
        let header = Header {
            src: of(src.into()),
            src_incarnation: 0,
            dst: of(1),
            message,
        };
        (src, Packet { header, words })
    };
    let suspect = |node, incarnation| Word::new(of(node), incarnation, foca::State::Suspect);
    let down = |node, incarnation| Word::new(of(node), incarnation, foca::State::Down);
    let ask = Message::PingReq {
        target: of(3),
        probe_number: 2,
    };
    let told = Message::ForwardedAck {
        origin: of(3),
        probe_number: 2,
    };
    let calm = [
        packet(2, Message::Ping(1), vec![Word::alive(of(3))]),
        packet(3, Message::Ack(1), Vec::new()),
        packet(4, ask, Vec::new()),
        packet(5, told, vec![Word::alive(of(6))]),
        packet(6, Message::Announce, Vec::new()),
    ];
    let bad = [
        packet(2, Message::Gossip, vec![suspect(1, 0), down(3, 0)]),
        packet(3, Message::Gossip, vec![suspect(1, 1), down(4, 9)]),
        packet(4, Message::TurnUndead, Vec::new()),
        packet(5, Message::Feed, vec![suspect(2, u16::MAX)]),
    ];
    vec![
        ("swim", "calm", packets(&calm)),
        ("swim", "bad", packets(&bad)),
        ("swim", "packet", calm[0].1.encode().unwrap()),
    ]
}

fn netlink() -> Vec<Seed> {
    let attrs = |fill: &dyn Fn(&mut Writer<'_>)| {
        let mut buffer = vec![0; 4096];
        let mut w = Writer::new(&mut buffer);
        fill(&mut w);
        w.finish().to_vec()
    };
    let peer = NodeId::new(2).map_or(0, |n| u32::from(n.get()));
    let down = attrs(&|w| {
        w.u32(Attr::Peer, peer).unwrap();
        w.u32(Attr::Class, 1).unwrap();
        w.u32(Attr::Errno, 104).unwrap();
    });
    let refused = attrs(&|w| {
        w.u64(Attr::Token, 9).unwrap();
        w.u32(Attr::Errno, 5).unwrap();
        w.u32(Attr::Reason, Reason::FileKind as u32).unwrap();
        w.bytes(Attr::Text, b"socket").unwrap();
    });
    let report = [1_u8; size_of::<ssi::uapi::Report>()];
    let filled = attrs(&|w| {
        w.u64(Attr::Token, 9).unwrap();
        w.u32(Attr::Errno, 0).unwrap();
        w.bytes(Attr::Report, &report).unwrap();
    });
    let mut records = [[1_u8; size_of::<ssi::uapi::ProcRecord>()]; 2];
    records[1][0] = 2;
    let listed = attrs(&|w| {
        w.bytes(Attr::Procs, records.as_bytes()).unwrap();
        w.bytes(Attr::Stats, &[1; 64]).unwrap();
    });
    let mut datagram = Vec::new();
    for (cmd, payload) in [(Cmd::LinkDown, &down), (Cmd::Filled, &filled)] {
        let length = u32::try_from(20 + payload.len()).unwrap();
        datagram.extend(length.to_ne_bytes());
        datagram.extend(30_u16.to_ne_bytes());
        datagram.extend([0; 10]);
        datagram.extend([cmd as u8, 1, 0, 0]);
        datagram.extend(payload);
    }
    vec![
        ("netlink", "down", down),
        ("netlink", "refused", refused),
        ("netlink", "filled", filled),
        ("netlink", "listed", listed),
        ("netlink", "datagram", datagram),
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
        call("RotateAuthority", json!({})),
    ]);
    let config = "# All keys.\nstate = \"/var/lib/ssid\"\nport = 7400\npeer_dead_after_s = 10\n\
        certificate_life_s = 604800\nsocket = \"/run/ssid/io.unum.Cluster\"\nlog = \"info\"\n\
        audit = \"/var/lib/ssid/audit\"\nmetrics = \"127.0.0.1:9400\"\nplain_links = false\n\n\
        [guests]\nhost = true\nroot = false\nuids = [\"1000-1999\", \"4000\"]\n";
    vec![
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
        "key": "key", "request": "AQI=", "nonce": Unique(9).to_string(),
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
