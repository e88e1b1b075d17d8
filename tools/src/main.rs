// SPDX-License-Identifier: MIT OR Apache-2.0

//! ssictl, the command line of a Unum cluster.
#![forbid(unsafe_code)]

mod ask;
mod audit;
mod cli;
#[cfg(test)]
mod documents;
mod events;
mod fail;
mod govern;
mod kv;
mod lock;
mod migrate;
mod out;
mod pages;
mod show;

use std::process::ExitCode;

use clap::Parser;

use cli::{Arguments, AuditCommand, ClusterCommand, Command, LockCommand, NodeCommand};
use fail::Fail;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let json = arguments.command.wants_json();
    match run(arguments) {
        Ok(code) => code,
        Err(fail) => fail.report(json),
    }
}

/// Carries the command out. Its exit status, should it not fail, is 0 but for a check that came out badly,
/// and for a command that was run under a lock.
fn run(arguments: Arguments) -> Result<ExitCode, Fail> {
    let socket = &arguments.socket;
    match arguments.command {
        Command::Cluster(ClusterCommand::Status(a)) => return show::status(socket, a.output),
        Command::Lock(a) => match a.command {
            Some(LockCommand::Ls(a)) => lock::list(socket, a.output),
            None => return lock::run(socket, &a.run),
        },
        Command::Kv(command) => kv::run(socket, &command),
        Command::Migrate(a) => migrate::migrate(socket, &a),
        Command::Why(a) => migrate::why(socket, &a),
        Command::Ps(a) => show::ps(socket, a.output),
        Command::Node(command) => match command {
            NodeCommand::Ls(a) => show::nodes(socket, a.output),
            NodeCommand::Show(a) => govern::show(socket, &a),
            NodeCommand::Join(a) => govern::join(socket, &a),
            NodeCommand::Leave(a) => govern::leave(socket, &a),
            NodeCommand::Remove(a) => govern::remove(socket, &a),
            NodeCommand::Revoke(a) => govern::revoke(socket, &a.node, true),
            NodeCommand::Cordon(a) => govern::cordon(socket, &a, true),
            NodeCommand::Uncordon(a) => govern::cordon(socket, &a, false),
            NodeCommand::Pardon(a) => govern::pardon(socket, &a),
        },
        Command::Cluster(ClusterCommand::Init(a)) => govern::init(socket, &a),
        Command::Cluster(ClusterCommand::Token(a)) => govern::token(socket, &a),
        Command::Cluster(ClusterCommand::Ca(a)) => govern::authority(socket, &a),
        Command::Cluster(ClusterCommand::Recover(a)) => govern::recover(socket, &a),
        Command::Events(a) => events::events(socket, &a),
        Command::Audit(AuditCommand::Verify(a)) => audit::verify(&a),
        Command::Version(a) => show::version(socket, a.output),
        Command::Man(a) => pages::man(&a),
        Command::Completions(a) => pages::completions(&a),
    }?;
    Ok(ExitCode::SUCCESS)
}
