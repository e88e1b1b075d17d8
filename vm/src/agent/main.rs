// SPDX-License-Identifier: MIT OR Apache-2.0

//! The agent: process 1 of a test VM, and the far end of `vm/cluster exec` and `vm/cluster push`.
//!
//! It is one static program with five parts:
//!
//! - `agent init` is process 1 once the set-up script is done: it starts the server and reaps orphans;
//! - `agent serve` answers on the virtio-serial ports `ssi.exec.K`, one session at a time on each;
//! - `agent lead` leads the session of a terminal ([`lead`] says why that is a process of its own);
//! - `agent foreground` waits until it owns its terminal, then becomes the command;
//! - `agent clock` sets the time of day.

#![forbid(unsafe_code)]

mod clock;
mod job;
mod lead;
mod port;
mod proto;
mod session;

use std::io::{self, Write};
use std::process::{Command, ExitCode};

use rustix::process::{WaitOptions, wait};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let part = args.next().unwrap_or_default();
    let result = match part.to_str() {
        Some("init") => init(),
        Some("serve") => port::serve(),
        Some("lead") => lead::lead(args.collect()),
        Some("foreground") => lead::foreground(args.collect()),
        Some("clock") => clock::set(),
        _ => Err(io::Error::other(
            "usage: agent init|serve|lead|foreground|clock",
        )),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(io::stderr(), "agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Keeps a server running and reaps whatever loses its parent. Process 1 must not end.
fn init() -> io::Result<ExitCode> {
    let serve = || {
        Command::new(std::env::current_exe()?)
            .arg("serve")
            .spawn()
            .map(|child| child.id())
    };
    let mut server = serve()?;
    loop {
        let gone = wait(WaitOptions::empty())?.map(|(pid, _)| pid.as_raw_nonzero().get());
        if gone == Some(server.cast_signed()) {
            server = serve()?;
        }
    }
}
