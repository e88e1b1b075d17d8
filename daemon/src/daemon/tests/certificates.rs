// SPDX-License-Identifier: MIT OR Apache-2.0

//! Certificates run out, are renewed and revoked.

use super::*;
use crate::msg::Request;
use crate::msg::govern::GiveSeal;

/// Certificates are good for so long here.
const LIFE: Duration = Duration::from_secs(6);

#[test]
fn certificates_are_renewed_and_connections_do_not_outlive_them() {
    let machines = Machines::new(2);
    let start = |number| {
        let config = Config {
            certificate_life: LIFE,
            ..machines.config(number)
        };
        machines.start_with(config, facts::read().unwrap())
    };
    let (one, two) = (start(1), start(2));
    let invitation = machines.found(&one, 1);
    assert_eq!(machines.join(&two, 2, &invitation), 2);
    linked(&one, &two, 1);
    let fingerprint = |of: u16| one.council().state().nodes[&id(of)].fingerprint;
    let ends_ms = || {
        let state = one.council().state();
        state.ends_ms[&state.nodes[&id(2)].fingerprint]
    };
    let (first, first_end) = ([1, 2].map(fingerprint), ends_ms());
    let connections = || {
        let records = one.records();
        let all = records.lines().filter(|l| l.contains("node-admitted"));
        all.filter(|l| l.contains("\"daemon\"")).count()
    };
    let before = connections();
    wait_for("both have another, and a connection by it", || {
        for (of, other) in [(&one, 2), (&two, 1)] {
            assert_ne!(of.state(other), "dead");
        }
        fingerprint(1) != first[0] && fingerprint(2) != first[1] && connections() > before + 1
    });
    assert!(ends_ms() > first_end);
    wait_for("both are up", || {
        one.state(2) == "up" && two.state(1) == "up"
    });
    let deaths = [&one, &two].map(|of| *of.notes.deaths.lock().unwrap());
    assert_eq!(deaths, [0, 0]);
}

#[test]
fn who_is_revoked_is_cut_off_within_a_second() {
    const WITHIN: Duration = Duration::from_secs(1);
    let (_machines, [one, two, three]) = formed();
    let remove = json!({ "node": "n3", "force": true });
    let _: serde_json::Value = two.call("Remove", remove).unwrap();
    let said = Instant::now();
    for (of, name) in [(&two, "two"), (&one, "one")] {
        while *of.notes.deaths.lock().unwrap() == 0 {
            assert!(said.elapsed() < WITHIN, "{name} still has to do with it");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(of.cluster().roster().peer(id(3)).is_none());
    }
    // It is answered by nobody.
    let runtime = Runtime::new().unwrap();
    for other in [1, 2] {
        let way = way(&three, other);
        let asked = way.ask_once(Request::GiveSeal(GiveSeal {}), WITHIN);
        runtime.block_on(asked).unwrap_err();
    }
}
