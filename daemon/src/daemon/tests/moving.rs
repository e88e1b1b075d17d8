// SPDX-License-Identifier: MIT OR Apache-2.0

//! Moves of processes.

use super::*;

/// A process of this machine with a number of node `node`'s range; `None` where none can be made.
fn process(node: NodeId, offset: u32) -> Option<u32> {
    use std::os::fd::AsFd;
    let pid = node.first_pid() + offset;
    let sleep = std::fs::File::open("/bin/sleep").unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    match crate::sys::spawn_as(
        pid,
        sleep.as_fd(),
        null.as_fd(),
        "sleep",
        "60",
        "monotonic 0 0\n",
    ) {
        Ok(()) => Some(pid),
        Err(e) => {
            eprintln!("skipped: cannot start a process as {pid} here: {e}");
            None
        }
    }
}

#[test]
fn a_move_is_asked_for_anywhere_and_carried_out_where_the_process_runs() {
    let pair = Pair::new();
    let n1 = pair.start(1);
    let n2 = pair.start(2);
    linked(&n1, &n2, 1);
    let home = NodeId::new(2).unwrap();
    let Some(pid) = process(home, 4_242) else {
        return;
    };
    // As if it had been created on n2 and ran on n1.
    n1.add(pid, 2, 1, STATE_GUEST);
    n2.add(pid, 2, 1, STATE_AWAY);

    let ps: PsReply = n2.call("Ps", json!({})).unwrap();
    assert!(ps.missing.is_empty());
    let row: Vec<_> = ps.processes.iter().filter(|p| p.pid == pid).collect();
    assert_eq!(row.len(), 1);
    assert_eq!(
        (row[0].node, row[0].home, &*row[0].state, &*row[0].comm),
        (1, 2, "away", "sleep")
    );

    let why: WhyReply = n2.call("Why", json!({ "pid": pid })).unwrap();
    assert_eq!(why.node, 1);

    let refused = |r: Result<MigrateReply, varlink::Error>| match r {
        Err(varlink::Error::Reply { name, parameters }) => (
            name.rsplit('.').next().unwrap().to_owned(),
            parameters["reason"].as_str().unwrap_or("").to_owned(),
        ),
        r => panic!("{r:?}"),
    };
    let migrate =
        |node: &Running, pid: u32, to: &str| node.call("Migrate", json!({ "pid": pid, "to": to }));
    assert_eq!(
        refused(migrate(&n2, pid, "n1")),
        ("Refused".to_owned(), "already-there".to_owned())
    );
    assert_eq!(refused(migrate(&n2, pid, "n7")).0, "NotFound");
    assert_eq!(
        refused(migrate(&n1, home.first_pid() + 99_999, "n1")).0,
        "NotFound"
    );
    assert_eq!(
        refused(migrate(&n1, 1, "n2")),
        ("Refused".to_owned(), "too-old".to_owned())
    );

    // Home again, asked for at home: the deputy waits there, no stub is needed. That the link gets other keys just
    // then is waited for.
    *n1.notes.unlinked.lock().unwrap() = 2;
    let mut phases = Vec::new();
    let mut client = Client::connect(&n2.socket, Some(PATIENCE)).unwrap();
    let done: MigrateReply = client
        .call(
            "io.unum.Cluster.Migrate",
            &json!({ "pid": pid, "to": "2" }),
            |r: MigrateReply| {
                phases.extend(r.phase);
            },
        )
        .unwrap();
    let m = done.migration.unwrap();
    assert_eq!(
        (m.pid, m.from, m.to, m.times.committed_us),
        (pid, 1, 2, 1234)
    );
    assert_eq!(phases, ["reading", "preparing", "moving"]);
    assert_eq!(*n1.notes.unlinked.lock().unwrap(), 0);

    // A target that has the number already says so, and nothing was begun.
    let Some(other) = process(NodeId::new(1).unwrap(), 4_243) else {
        return;
    };
    let message = match migrate(&n2, other, "n2") {
        Err(varlink::Error::Reply { parameters, .. }) => {
            parameters["text"].as_str().unwrap().to_owned()
        }
        r => panic!("{r:?}"),
    };
    assert!(message.contains("taken"), "{message}");
    for child in [pid, other] {
        let child = nix::unistd::Pid::from_raw(child.cast_signed());
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
    }
}
