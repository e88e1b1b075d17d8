// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ssictl lock` against a daemon that grants all and renews as often as a test says.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use ssid::varlink::{Call, Frames, MAX_CALL_BYTES, Reply, encode};

/// Answers calls until the other side hangs up; after `renewals` the lease is over.
fn serve(mut stream: UnixStream, mut renewals: u32) -> Vec<Call> {
    let (mut frames, mut chunk) = (Frames::new(MAX_CALL_BYTES), [0; 4096]);
    let mut calls = Vec::new();
    while let Ok(n @ 1..) = stream.read(&mut chunk) {
        frames.push(&chunk[..n]);
        while let Some(call) = frames.take::<Call>().unwrap() {
            let refuse = |reason: &str| Reply {
                error: Some("io.unum.Cluster.Refused".to_owned()),
                parameters: Some(json!({ "message": reason, "reason": reason })),
                ..Reply::default()
            };
            let done = |parameters: Value| Reply {
                parameters: Some(parameters),
                ..Reply::default()
            };
            let name = call.parameters.as_ref().map(|p| p["name"].clone());
            let reply = match call.method.as_str() {
                "io.unum.Cluster.Acquire" => match name.as_ref().and_then(Value::as_str) {
                    Some(refused @ ("deadlock" | "held" | "lock-timeout")) => refuse(refused),
                    _ => done(json!({ "token": 42, "session": "s", "ttl_ms": 1500 })),
                },
                _ if renewals == 0 => refuse("session-ended"),
                _ => {
                    renewals -= 1;
                    done(json!({}))
                }
            };
            calls.push(call);
            stream.write_all(&encode(&reply).unwrap()).unwrap();
        }
    }
    calls
}

/// Runs `ssictl lock`; returns what came of it, and what it asked the daemon.
fn lock(renewals: u32, arguments: &[&str]) -> (Output, Vec<Call>) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || serve(listener.accept().unwrap().0, renewals));
    let output = Command::new(env!("CARGO_BIN_EXE_ssictl"))
        .arg("--socket")
        .arg(&socket)
        .arg("lock")
        .args(arguments)
        .env_remove("SSI_LOCK_SESSION")
        .output()
        .unwrap();
    (output, daemon.join().unwrap())
}

fn status(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn the_command_has_the_token_and_its_status_is_passed_on() {
    let script = "echo $SSI_LOCK_TOKEN $SSI_LOCK_SESSION; grep SigBlk /proc/self/status; exit 9";
    let (output, calls) = lock(0, &["a", "--read", "--wait", "0", "--", "sh", "-c", script]);
    assert_eq!(status(&output), Some(9));
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "42 s\nSigBlk:\t0000000000000000\n");
    let asked = calls[0].parameters.as_ref().unwrap();
    assert_eq!(
        (&asked["name"], &asked["mode"]),
        (&json!("a"), &json!("read"))
    );
    assert_eq!(
        (&asked["wait_ms"], &asked["parent"]),
        (&Value::Null, &Value::Null)
    );
    let (output, _) = lock(0, &["a", "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(status(&output), Some(137));
}

#[test]
fn the_lease_is_renewed_while_the_command_runs() {
    let (output, calls) = lock(9, &["a", "--", "sleep", "2"]);
    assert_eq!(status(&output), Some(0));
    let renewals = calls.iter().filter(|c| c.method.ends_with(".Renew"));
    assert!(renewals.count() >= 2);
    // It is given up before the tool ends.
    let last = calls.last().unwrap();
    assert_eq!(last.method, "io.unum.Cluster.Release");
    assert_eq!(last.parameters.as_ref().unwrap()["name"], "a");
}

#[test]
fn a_command_whose_lock_is_lost_is_told_to_end() {
    let begun = Instant::now();
    let script = "trap 'echo told; exit 0' TERM; while :; do sleep 0.1; done";
    let (output, _) = lock(1, &["a", "--", "sh", "-c", script]);
    assert_eq!(status(&output), Some(7));
    assert_eq!(output.stdout, b"told\n");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[test]
fn each_way_not_to_have_it_has_its_status() {
    for (name, wanted) in [("held", 5), ("deadlock", 6), ("lock-timeout", 124)] {
        let (output, _) = lock(0, &[name, "--", "true"]);
        assert_eq!(status(&output), Some(wanted), "{name}");
    }
    let (output, _) = lock(0, &["a", "--", "/no/such/command"]);
    assert_eq!(status(&output), Some(127));
    let (output, _) = lock(0, &["a", "--", "/"]);
    assert_eq!(status(&output), Some(126));
}
