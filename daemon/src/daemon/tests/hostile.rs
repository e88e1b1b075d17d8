// SPDX-License-Identifier: MIT OR Apache-2.0

//! A node of three that lies: with what is really its own, as one would have it who took the machine over.

use prost::Message;

use super::*;
use crate::api::govern::ShowNodeReply;
use crate::api::value::{RevisionReply, Value};
use crate::core::offence::Offence;
use crate::core::state::{Outcome, Refusal};
use crate::msg::govern::{Agree, Retire};
use crate::msg::{Body, Envelope, Hint, Preface, Purpose, Request};

/// Three nodes that are linked, and the second is about to lie.
fn three() -> (Machines, [Running; 3]) {
    THERE_ARE_LIARS.set(true);
    formed()
}

fn is_quarantined(at: &Running, node: u16) -> bool {
    at.council().state().is_quarantined(id(node))
}

fn accusers(at: &Running, node: u16) -> Vec<u16> {
    let state = at.council().state();
    let accusers = state.nodes[&id(node)].conduct.accusers.keys();
    accusers.map(|n| n.get()).collect()
}

fn tells_of(at: &Running, event: &str, peer: u16, more: &str) -> bool {
    let told = format!("\"event\":\"{event}\",\"peer\":{peer}{more}");
    at.records().contains(&told)
}

/// Speaks to the third node as the second, whose keys it has. What the second itself says may come in between, and
/// end this.
async fn speak(machines: &Machines, preface: &Preface, more: Option<&impl Message>) {
    let stream = tokio::net::TcpStream::connect(machines.addr(3))
        .await
        .unwrap();
    let client = machines.identity(2).client;
    let name = tls::server_name(id(3));
    let mut session = Session::connect(stream, client, name).await.unwrap();
    let said = async {
        session.send(preface).await?;
        session.receive::<Preface>().await?;
        if let Some(more) = more {
            session.send(more).await?;
        }
        // Until it is hung up on.
        session.receive::<Envelope>().await
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), said).await;
}

fn preface(node: u32, purpose: Purpose) -> Preface {
    Preface {
        version: msg::VERSION,
        node,
        purpose: purpose.into(),
        instance: 1,
        facts: Some((&facts::read().unwrap()).into()),
        ..Preface::default()
    }
}

/// Lies of many kinds to the third node; each is found.
fn lie_to_the_third(machines: &Machines, liar: &Running, third: &Running) {
    let is_found = |offence: Offence| {
        let offence = format!(",\"offence\":\"{offence}\"");
        tells_of(third, "offence", 2, &offence)
    };
    let runtime = Runtime::new().unwrap();
    let none: Option<&Envelope> = None;
    wait_for("a lie about its name", || {
        runtime.block_on(speak(machines, &preface(1, Purpose::Control), none));
        is_found(Offence::AnotherName)
    });
    let mut link = preface(2, Purpose::LinkMemory);
    (link.own_since, link.your_since) = (1_000_000, 3);
    wait_for("a lie about its epoch", || {
        runtime.block_on(speak(machines, &link, none));
        is_found(Offence::EpochToCome)
    });
    let control = preface(2, Purpose::Control);
    let late = Envelope {
        stamp: u64::MAX,
        ..Envelope::default()
    };
    wait_for("a lie about the time", || {
        runtime.block_on(speak(machines, &control, Some(&late)));
        is_found(Offence::ImpossibleTime)
    });
    let garbage = msg::File {
        path: vec![0xff; 9],
        ..msg::File::default()
    };
    wait_for("garbage", || {
        runtime.block_on(speak(machines, &control, Some(&garbage)));
        is_found(Offence::Unreadable)
    });
    // By its own daemon, when that is connected again.
    wait_for("a packet that is none", || {
        let packet = vec![1; 3];
        way(liar, 3).hint(Body::Hint(Hint { packet }));
        is_found(Offence::NoPacket)
    });
}

#[test]
fn one_that_lies_is_put_away_by_the_others_until_it_is_pardoned() {
    let (machines, all) = three();
    let [n1, n2, n3] = &all;
    lie_to_the_third(&machines, n2, n3);
    // To its own lies nobody else is a witness.
    wait_for("it is accused", || accusers(n1, 2) == [3]);
    std::thread::sleep(Duration::from_millis(500));
    assert!(!is_quarantined(n1, 2));

    // Now it lies to the first, too.
    let begun = Instant::now();
    let agree = Agree {
        bytes: b"{\"vote\":".to_vec(),
        id: u64::MAX,
        is_last: true,
        ..Agree::default()
    };
    let runtime = Runtime::new().unwrap();
    let to_first = way(n2, 1);
    let asked = to_first.ask_once(Request::Agree(agree), PATIENCE);
    runtime.block_on(asked).unwrap();
    for node in &all {
        wait_for("all know", || is_quarantined(node, 2));
        wait_for("and write it down", || tells_of(node, "quarantined", 2, ""));
        for by in [1, 3] {
            assert!(tells_of(node, "accused", 2, &format!(",\"by\":{by}")));
        }
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(tells_of(n1, "offence", 2, ",\"offence\":\"unreadable\""));

    // It is to be seen, and nobody else is accused.
    let status: StatusReply = n3.call("Status", json!({})).unwrap();
    let problem = status.problems.iter().find(|p| p.node == 2).unwrap();
    assert_eq!(
        (&*problem.kind, &*status.health),
        ("quarantined", api::DEGRADED)
    );
    assert!(problem.text.contains("n1 (unreadable)"), "{}", problem.text);
    let shown: ShowNodeReply = n1.call("ShowNode", json!({ "node": "2" })).unwrap();
    assert_eq!((&*shown.state, shown.accusations.len()), ("quarantined", 2));
    for node in &all {
        assert_eq!(node.state(2), "quarantined");
        assert!(accusers(node, 1).is_empty() && accusers(node, 3).is_empty());
    }

    // The others go on without its vote, and it can have nothing done.
    wait_for("it does not vote", || {
        !n1.council().status().voters.contains(&id(2))
    });
    let set = |at: &Running, name: &str| {
        at.call::<RevisionReply>("SetValue", json!({ "name": name, "value": "YQ==" }))
    };
    set(n3, "a").unwrap();
    let value: Value = n1.call("GetValue", json!({ "name": "a" })).unwrap();
    assert_eq!(value.value, b"a");
    let pid = id(1).first_pid() + 7;
    n1.add(pid, 1, 3, STATE_AWAY);
    let ps: PsReply = n3.call("Ps", json!({})).unwrap();
    assert!(!ps.missing.contains(&1) && ps.processes.iter().any(|p| p.pid == pid));
    for (method, parameters) in [
        ("SetValue", json!({ "name": "b", "value": "YQ==" })),
        ("Pardon", json!({ "node": "2" })),
    ] {
        // Who leads may change meanwhile, and then it is not known for a moment.
        wait_for("it is refused for that", || {
            let done: Result<serde_json::Value, _> = n2.call(method, parameters.clone());
            let Err(varlink::Error::Reply { parameters, .. }) = done else {
                panic!("{done:?}")
            };
            parameters.to_string().contains("quarantined")
        });
    }
    let since = presence(n1, 2).since;
    let _: serde_json::Value = n1.call("Pardon", json!({ "node": "2" })).unwrap();
    wait_for("it is back", || presence(n1, 2).current() > Some(since));
    wait_for("all up", || {
        n1.state(2) == "up" && n2.state(3) == "up" && n3.state(2) == "up"
    });
    assert!(tells_of(n3, "pardoned", 2, "") && accusers(n1, 2).is_empty());
}

#[test]
fn one_that_accuses_all_others_has_nobody_put_away() {
    let (_machines, all) = three();
    let [n1, n2, n3] = &all;
    let runtime = Runtime::new().unwrap();
    let accuse = |by: u16, node: u16| {
        let accuse = Command::Accuse {
            by: id(by),
            node: id(node),
            since: presence(n1, node).since,
            offence: Offence::TwoEntries,
        };
        runtime.block_on(n2.council().propose(accuse))
    };
    for node in [1, 3] {
        assert_eq!(accuse(2, node).unwrap(), Outcome::Done);
        assert_eq!(accuse(2, node).unwrap(), Outcome::Done, "once more");
        wait_for("it is known", || accusers(n3, node) == [2]);
    }
    for node in [1, 3] {
        assert!(all.iter().all(|at| !is_quarantined(at, node)));
    }
    let status: StatusReply = n3.call("Status", json!({})).unwrap();
    let kinds: Vec<&str> = status.problems.iter().map(|p| &*p.kind).collect();
    assert_eq!(kinds, ["accused", "accused"]);
    // To speak in another's name does not help, but is a lie; so is to have another leave.
    let own_wish = format!("\"offence\":\"{}\"", Offence::AnothersWish);
    let not_yours = Refusal::NotYours;
    let refused = accuse(3, 1).unwrap_err().to_string();
    assert_eq!(refused, not_yours.to_string());
    wait_for("the first saw it", || {
        tells_of(n1, "offence", 2, &format!(",{own_wish}"))
    });
    let retire = Request::Retire(Retire {
        node: 1,
        since: 1,
        leaves: true,
    });
    let to_third = way(n2, 3);
    let refused = runtime.block_on(to_third.ask_once(retire, PATIENCE));
    assert!(refused.is_err());
    for node in [n1, n3] {
        wait_for("both saw it lie", || is_quarantined(node, 2));
        for honest in [1, 3] {
            assert!(accusers(node, honest).is_empty(), "its word counts no more");
        }
    }
}

#[test]
fn a_node_of_another_version_is_not_spoken_with() {
    let (machines, all) = formed::<3>();
    let runtime = Runtime::new().unwrap();
    let other = Preface {
        version: msg::VERSION + 1,
        ..preface(2, Purpose::Control)
    };
    let said = format!(
        "n2 speaks version {} of the protocol, this node version {}",
        msg::VERSION + 1,
        msg::VERSION
    );
    let none: Option<&Envelope> = None;
    wait_for("a record of it", || {
        runtime.block_on(speak(&machines, &other, none));
        let records = all[2].records();
        records.contains("connection-refused") && records.contains(&said)
    });
    // That is no offence.
    assert!(!all[2].records().contains("\"event\":\"offence\""));
}
