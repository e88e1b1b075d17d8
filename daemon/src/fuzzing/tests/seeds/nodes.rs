// SPDX-License-Identifier: MIT OR Apache-2.0

//! What nodes that agree, members that watch each other, and the module say.

use foca::{Header, Message};
use serde_json::{Value, json};
use ssi::uapi::{Attr, Cmd, ProcRecord, Reason, Report, Writer};
use zerocopy::IntoBytes;

use super::Seed;
use crate::core::state::State;
use crate::core::swim::packet::{Packet, Word};
use crate::core::swim::{Life, Member};

pub(super) fn raft() -> Vec<Seed> {
    let vote = |node: u64, term: u64, committed: bool| json!({"leader_id": {"term": term, "voted_for": node}, "committed": committed});
    let log_id = |term: u64, index: u64| json!({"leader_id": term, "index": index});
    let append_of = |term: u64, prev: Value, entries: Value| {
        json!({"append": {"rpc": {
            "vote": vote(2, term, true), "prev_log_id": prev, "entries": entries,
            "leader_commit": log_id(5, 1),
        }, "has_majority": true}})
    };
    let append = |prev, entries| append_of(5, prev, entries);
    let said = |messages: &[Value]| {
        let lines: Vec<String> = messages.iter().map(|m| format!("2{m}")).collect();
        lines.join("\n").into_bytes()
    };
    let state = serde_json::to_value(State::default()).unwrap();
    let snapshot = json!({"snapshot": {
        "vote": vote(2, 5, true),
        "meta": {"last_log_id": log_id(5, 9), "last_membership": {"log_id": null,
            "membership": {"configs": [[1, 2]], "nodes": {"1": {}, "2": {}}}}},
        "state": state,
    }});
    let ask = |kind: &str, term: u64| json!({kind: {"vote": vote(2, term, false), "last_log_id": log_id(1, 9)}});
    let propose = json!({"propose": {"kv": {"put": {"name": "a", "text": "b"}}}});
    let transfer = json!({"transfer": {"from_leader": vote(2, 5, true), "to_node_id": 1,
        "last_log_id": log_id(5, 1)}});
    let asked = said(&[
        json!("read-index"),
        propose,
        ask("pre-vote", 4),
        ask("vote", 5),
        json!({"extent": log_id(1, 1)}),
        json!({"extent": null}),
    ]);
    let appended = said(&[
        ask("vote", 5),
        append(Value::Null, json!([])),
        append(
            log_id(1, 1),
            json!([{"log_id": log_id(5, 2), "payload": "Blank"}]),
        ),
        transfer,
    ]);
    vec![
        ("raft", "asked", asked),
        ("raft", "appended", appended.clone()),
        ("raft", "learner", [b"-".to_vec(), appended].concat()),
        (
            "raft",
            "made",
            b"#\x022\x05\x01\x02\0\0\0\x002\x05\x01\x01\x03\x05\x04".to_vec(),
        ),
        (
            "raft",
            "made-learner",
            b"-#\x002\x01\0\0\x02\x01\x01\x042\x02\x01\x06\0\0\0".to_vec(),
        ),
        ("raft", "old-reign", b"#\0\0\0\0\0\0\x70\x02".to_vec()),
        (
            "raft",
            "endless",
            said(&[append_of(u64::MAX, Value::Null, json!([]))]),
        ),
        ("raft", "snapshot", said(&[snapshot])),
        (
            "raft",
            "last-reign",
            said(&[ask("vote", u64::MAX), ask("pre-vote", u64::MAX)]),
        ),
        (
            "raft",
            "last-entry",
            said(&[append(log_id(5, u64::MAX), json!([]))]),
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

pub(super) fn swim() -> Vec<Seed> {
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

pub(super) fn netlink() -> Vec<Seed> {
    let attrs = |fill: &dyn Fn(&mut Writer<'_>)| {
        let mut buffer = vec![0; 4096];
        let mut w = Writer::new(&mut buffer);
        fill(&mut w);
        w.finish().to_vec()
    };
    let down = attrs(&|w| {
        w.u32(Attr::Peer, 2).unwrap();
        w.u32(Attr::Class, 1).unwrap();
        w.u32(Attr::Errno, 104).unwrap();
    });
    let refused = attrs(&|w| {
        w.u64(Attr::Token, 9).unwrap();
        w.u32(Attr::Errno, 5).unwrap();
        w.u32(Attr::Reason, Reason::FileKind as u32).unwrap();
        w.bytes(Attr::Text, b"socket").unwrap();
    });
    let report = [1_u8; size_of::<Report>()];
    let filled = attrs(&|w| {
        w.u64(Attr::Token, 9).unwrap();
        w.u32(Attr::Errno, 0).unwrap();
        w.bytes(Attr::Report, &report).unwrap();
    });
    let mut records = [[1_u8; size_of::<ProcRecord>()]; 2];
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
