// SPDX-License-Identifier: MIT OR Apache-2.0

//! The commands that only show something.

use std::path::Path;
use std::process::ExitCode;

use comfy_table::{CellAlignment, Table, presets};
use serde_json::json;
use ssid::api::{self, NodesReply, PsReply, StatusReply, VersionReply};

use crate::ask;
use crate::cli::Output;
use crate::fail::{Fail, NOT_RUNNING};
use crate::out;

/// A table without lines, its first `numbers` columns to the right.
pub(crate) fn table<const N: usize>(header: [&str; N], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for n in numbers {
        if let Some(column) = table.column_mut(*n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Writes a table.
pub(crate) fn print(table: &Table) -> Result<(), Fail> {
    table
        .to_string()
        .lines()
        .try_for_each(|line| out::line(line.trim_end()))
}

/// Lists processes.
pub(crate) fn ps(socket: &Path, output: Output) -> Result<(), Fail> {
    let reply: PsReply = ask::once(socket, "Ps", &json!({}))?;
    for node in &reply.missing {
        eprintln!("warning: n{node} does not answer; its processes may be missing");
    }
    if output == Output::Json {
        return out::json(&reply.processes);
    }
    let mut rows = table(
        [
            "PID",
            "NODE",
            "HOME",
            "STATE",
            "THREADS",
            "FORWARDED",
            "MISSING",
            "COMMAND",
        ],
        &[0, 4, 5, 6],
    );
    for p in reply.processes {
        rows.add_row([
            p.pid.to_string(),
            format!("n{}", p.node),
            format!("n{}", p.home),
            p.state,
            p.threads.to_string(),
            p.forwarded.to_string(),
            p.missing_pages.to_string(),
            p.comm.escape_debug().to_string(),
        ]);
    }
    print(&rows)
}

/// Lists nodes.
pub(crate) fn nodes(socket: &Path, output: Output) -> Result<(), Fail> {
    let reply: NodesReply = ask::once(socket, "Nodes", &json!({}))?;
    if output == Output::Json {
        return out::json(&reply.nodes);
    }
    let mut rows = table(["ID", "NAME", "ADDRESS", "STATE", "ROLE"], &[0]);
    for n in reply.nodes {
        let cordoned = if n.cordoned { " (cordoned)" } else { "" };
        let state = n.state + cordoned;
        rows.add_row([n.id.to_string(), n.name, n.addr, state, n.role]);
    }
    print(&rows)
}

/// Shows how the cluster is; the exit status says whether all is well.
pub(crate) fn status(socket: &Path, output: Output) -> Result<ExitCode, Fail> {
    let reply: StatusReply = ask::once(socket, "Status", &json!({}))?;
    let code = if reply.health == api::WHOLE {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NOT_RUNNING)
    };
    if output == Output::Json {
        out::json(&reply)?;
        return Ok(code);
    }
    out::line(&reply.health)?;
    for problem in &reply.problems {
        out::line(&format!("  {}", problem.text))?;
    }
    let mut rows = table(["ID", "NAME", "STATE", "ROUND TRIP", "CLOCK"], &[0, 3, 4]);
    let ms = |us: i64| format!("{}.{:01} ms", us / 1000, us.abs() % 1000 / 100);
    let signed = |us: i64| {
        format!(
            "{}{}",
            if us < 0 { '-' } else { '+' },
            ms(us.saturating_abs())
        )
    };
    for n in reply.nodes {
        rows.add_row([
            n.id.to_string(),
            n.name,
            n.state,
            n.round_trip_us.map(ms).unwrap_or_default(),
            n.clock_offset_us.map(signed).unwrap_or_default(),
        ]);
    }
    print(&rows)?;
    Ok(code)
}

/// Shows versions.
pub(crate) fn version(socket: &Path, output: Output) -> Result<(), Fail> {
    let client = env!("CARGO_PKG_VERSION");
    let daemon: Result<VersionReply, Fail> = ask::once(socket, "Version", &json!({}));
    if output == Output::Json {
        return out::json(&json!({ "client": client, "daemon": daemon? }));
    }
    out::line(&format!("ssictl {client}"))?;
    let d = daemon?;
    out::line(&format!(
        "ssid {} on n{}, netlink protocol {}, daemon protocol {}",
        d.daemon, d.node, d.netlink, d.protocol
    ))
}
