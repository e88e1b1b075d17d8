// SPDX-License-Identifier: MIT OR Apache-2.0

//! ssictl, the command line of a Unum cluster.
#![forbid(unsafe_code)]

mod ask;
mod audit;
mod cli;
mod fail;
mod migrate;
mod out;
mod pages;
mod pki;
mod show;

use std::process::ExitCode;

use clap::Parser;

use cli::{Arguments, AuditCommand, Command, NodeCommand, PkiCommand};
use fail::Fail;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.command.wants_json();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fail) => fail.report(json),
    }
}

fn run(arguments: Arguments) -> Result<(), Fail> {
    let socket = &arguments.socket;
    match arguments.command {
        Command::Migrate(a) => migrate::migrate(socket, &a),
        Command::Why(a) => migrate::why(socket, &a),
        Command::Ps(a) => show::ps(socket, a.output),
        Command::Node(NodeCommand::Ls(a)) => show::nodes(socket, a.output),
        Command::Pki(PkiCommand::Init(a)) => pki::init(&a),
        Command::Pki(PkiCommand::Issue(a)) => pki::issue(&a),
        Command::Audit(AuditCommand::Verify(a)) => audit::verify(&a),
        Command::Version(a) => show::version(socket, a.output),
        Command::Man(a) => pages::man(&a),
        Command::Completions(a) => pages::completions(&a),
    }
}
