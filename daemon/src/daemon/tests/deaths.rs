// SPDX-License-Identifier: MIT OR Apache-2.0

//! Nodes and links that are lost, and come back.

use super::*;

#[test]
fn a_pair_links_mends_and_survives_a_death() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let n2 = pair.start(2);
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");

    // The sockets of one class are two ends of one connection, with nothing in between.
    for class in Class::ALL {
        let (mut a, mut b) = (n1.link(class), n2.link(class));
        a.set_read_timeout(Some(PATIENCE)).unwrap();
        b.set_read_timeout(Some(PATIENCE)).unwrap();
        a.write_all(b"ping").unwrap();
        b.write_all(b"pong").unwrap();
        let mut got = [0; 4];
        b.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"ping");
        a.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"pong");
    }

    // Either side may find a link broken; only that class is made again.
    let down = |of: &Running, peer: u16| {
        let event = Event::LinkDown {
            peer: NodeId::new(peer).unwrap(),
            class: Class::Memory,
            errno: 104,
        };
        of.notes.report(event);
    };
    n2.link(Class::Memory).shutdown(Shutdown::Both).unwrap();
    down(&n2, 1);
    wait_for("another link", || {
        n1.links(Class::Memory) == 2 && n2.links(Class::Memory) == 2
    });
    // Late news of the one that was replaced, on both sides, break nothing.
    down(&n1, 2);
    down(&n2, 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!((n1.links(Class::Memory), n2.links(Class::Memory)), (2, 2));
    let peer = NodeId::new(2).unwrap();
    n1.notes.report(Event::Renew {
        peer,
        class: Class::Memory,
    });
    wait_for("a third link", || {
        n1.links(Class::Memory) == 3 && n2.links(Class::Memory) == 3
    });
    assert_eq!((n1.links(Class::Control), n2.links(Class::Control)), (1, 1));

    drop(n2);
    wait_for("silence", || n1.state(2) == "silent");
    wait_for("death", || n1.state(2) == "dead");
    wait_for("the module hears of it", || {
        *n1.notes.deaths.lock().unwrap() == 1
    });
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(*n1.notes.deaths.lock().unwrap(), 1, "once");

    let before = n1.links(Class::Control);
    let n2 = pair.start(2);
    wait_for("up again", || n1.state(2) == "up");
    linked(&n1, &n2, 1);
    wait_for("linked again", || n1.links(Class::Control) > before);
}

#[test]
fn a_daemon_that_restarts_quickly_is_linked_again_and_not_declared_dead() {
    let pair = Pair::new();
    let n2 = pair.start(2);
    let n1 = pair.start(1);
    linked(&n1, &n2, 1);
    drop(n1);
    let n1 = pair.start(1);
    linked(&n1, &n2, 1);
    wait_for("new links at the other side", || {
        n2.links(Class::Control) == 2 && n2.links(Class::Memory) == 2
    });
    assert_eq!(*n2.notes.deaths.lock().unwrap(), 0);
}

#[test]
fn one_that_dies_is_declared_dead_and_comes_back_in_another_epoch() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let since = presence(&n1, 2).since;
    drop(n2);
    wait_for("it is declared dead", || {
        presence(&n1, 2).current().is_none()
    });
    assert_eq!(n1.state(2), "dead");
    let n2 = pair.start(2);
    wait_for("it is back", || presence(&n1, 2).current() > Some(since));
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    assert_eq!(*n1.notes.deaths.lock().unwrap(), 1);
    let records = n1.records();
    for part in ["declared-dead", "came-back"] {
        assert!(records.contains(part), "{part} in {records}");
    }
}

#[test]
fn one_that_is_declared_dead_and_lives_ends_what_it_had_first() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let since = presence(&n1, 2).since;
    let node = NodeId::new(2).unwrap();
    Runtime::new()
        .unwrap()
        .block_on(n1.council().propose(Command::DeclareDead { node, since }))
        .unwrap();
    wait_for("it comes back", || presence(&n2, 2).since > since);
    for node in [&n1, &n2] {
        assert_eq!(*node.notes.deaths.lock().unwrap(), 1);
    }
    linked(&n1, &n2, 2);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    assert_eq!(presence(&n1, 2).current(), presence(&n2, 2).current());
}

#[test]
fn a_link_of_an_epoch_that_is_over_is_turned_away() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    let runtime = Runtime::new().unwrap();
    let peer = n1.cluster().roster().node(NodeId::new(2).unwrap()).unwrap();
    let of = |node: u16| presence(&n1, node).since;
    for (own, other) in [(of(1), of(2) - 1), (of(1) + 1, of(2)), (0, 0)] {
        let cluster = n1.cluster();
        let pair = tie::Pair { own, other };
        let dial = cluster.net().dial_link(&peer, Class::Memory, 77, pair);
        // It is sent before it can be judged.
        let _ = runtime.block_on(dial);
    }
    wait_for("they are accounted for", || {
        n2.records().matches("of an epoch that is over").count() == 3
    });
    assert_eq!(n2.links(Class::Memory), 1);
}

#[test]
fn a_fenced_node_has_no_links_until_it_is_let_free() {
    let pair = Pair::new();
    let (n1, n2) = (pair.start(1), pair.start(2));
    linked(&n1, &n2, 1);
    wait_for("both up", || n1.state(2) == "up" && n2.state(1) == "up");
    let fence = |node: &Running, is: bool| {
        let cluster = node.cluster();
        Runtime::new().unwrap().block_on(cluster.set_isolated(is));
    };
    for fenced in [&n1, &n2] {
        fence(fenced, true);
        wait_for("the module is told", || {
            *fenced.notes.deaths.lock().unwrap() == 1
        });
        let e = fenced.call::<MigrateReply>("Migrate", json!({ "pid": 1, "to": "1" }));
        assert!(e.is_err());
        fence(fenced, false);
        wait_for("it works again", || {
            n1.state(2) == "up" && n2.state(1) == "up"
        });
    }
    // The other side begins anew meanwhile: its links come and are not taken, and it must be asked for others.
    fence(&n2, true);
    drop(n1);
    let n1 = pair.start(1);
    wait_for("no links", || n1.state(2) == "linking");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(n1.links(Class::Control), 0);
    fence(&n2, false);
    wait_for("both up again", || {
        n1.state(2) == "up" && n2.state(1) == "up"
    });
}

#[test]
fn who_votes_and_is_silent_votes_until_it_is_declared_dead() {
    let (_machines, [one, two, three, four]) = formed();
    let voters = || one.council().status().voters;
    assert_eq!(voters(), [1, 2, 3].map(id).into());
    drop(three);
    wait_for("silence", || one.state(3) == "silent");
    wait_for("its death", || {
        let now = voters();
        let is_dead = presence(&one, 3).current().is_none();
        assert!(is_dead || now.contains(&id(3)), "{now:?}");
        is_dead
    });
    wait_for("the fourth votes", || voters() == [1, 2, 4].map(id).into());
    drop((two, four));
}
