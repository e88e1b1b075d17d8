// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ssictl migrate` and `ssictl why`.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ssid::api::{INTERFACE, MigrateParameters, MigrateReply, Migration, WhyParameters, WhyReply};
use ssid::varlink::{Client, Error};

use crate::ask;
use crate::cli::{Migrate, Output, Why};
use crate::fail::Fail;
use crate::out;

/// Moves a process.
pub(crate) fn migrate(socket: &Path, a: &Migrate) -> Result<(), Fail> {
    let parameters = MigrateParameters {
        pid: a.pid,
        to: a.to.clone(),
        wait: a.wait.then_some(true),
    };
    let (sender, result) = mpsc::channel();
    let path = socket.to_owned();
    let terminal = std::io::stderr().is_terminal() && a.output == Output::Text;
    // A thread of its own, so that the time limit holds for the whole, not for each answer.
    std::thread::spawn(move || {
        let call = || {
            Client::connect(&path, None)?.call(
                &format!("{INTERFACE}.Migrate"),
                &parameters,
                |r: MigrateReply| {
                    if let (true, Some(phase)) = (terminal, r.phase) {
                        eprintln!("{phase} ...");
                    }
                },
            )
        };
        let _ = sender.send(call());
    });
    let reply = match a.timeout {
        None => result.recv().unwrap_or(Err(Error::Closed)),
        Some(seconds) => match result.recv_timeout(Duration::from_secs(seconds)) {
            Ok(reply) => reply,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                return Err(Fail::timeout(
                    "the move goes on; `ssictl ps` shows where the process is",
                ));
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Error::Closed),
        },
    };
    let migration = reply
        .map_err(|e| Fail::call(socket, e))?
        .migration
        .ok_or_else(|| Fail::call(socket, Error::Closed))?;
    match a.output {
        Output::Json => out::json(&migration),
        Output::Text => out::line(&describe(&migration)),
    }
}

fn describe(m: &Migration) -> String {
    let bytes = m.image_bytes + m.fetched_bytes + m.pushed_bytes;
    format!(
        "{} moved from n{} to n{}: stopped for {}.{:03} ms, {bytes} bytes moved",
        m.pid,
        m.from,
        m.to,
        m.times.committed_us / 1000,
        m.times.committed_us % 1000
    )
}

/// Says whether a process would move.
pub(crate) fn why(socket: &Path, a: &Why) -> Result<(), Fail> {
    let reply: WhyReply = ask::once(
        socket,
        "Why",
        &WhyParameters {
            pid: a.pid,
            to: a.to.clone(),
        },
    )?;
    match a.output {
        Output::Json => out::json(&reply),
        Output::Text => out::line(&format!(
            "{} runs on n{} and can move",
            reply.pid, reply.node
        )),
    }
}
