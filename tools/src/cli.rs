// SPDX-License-Identifier: MIT OR Apache-2.0

//! The grammar of the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ssid::config::DEFAULT_SOCKET;
use ssid::core::chain::Hash;

const EXIT_CODES: &str = "\
Exit status:
  0    done
  1    failed
  2    wrong usage
  3    the daemon, a node or the module is not running, or the cluster is degraded
  4    no such process or node, or not permitted
  5    refused: the process cannot move; the reason code says why
  124  not done in time";

/// Moves running processes between the nodes of a Unum cluster and shows where they are.
///
/// Any command can be given on any node for any process.
#[derive(Debug, Parser)]
#[command(name = "ssictl", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// Socket of the daemon
    #[arg(long, global = true, env = "SSI_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub(crate) socket: PathBuf,
    /// What to do
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a running process to another node
    Migrate(Migrate),
    /// Say whether a process would move, and if not, why
    Why(Why),
    /// List the processes of the cluster
    Ps(Show),
    /// Nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// The cluster as a whole
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Certificates
    #[command(subcommand)]
    Pki(PkiCommand),
    /// The record of who was let in and who moved what
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show the versions of this tool and of the daemon
    Version(Show),
    /// Write manual pages
    #[command(hide = true)]
    Man(Man),
    /// Print a completion script
    Completions(Completions),
}

impl Command {
    /// Whether errors are to be told in JSON.
    pub(crate) fn wants_json(&self) -> bool {
        let output = match self {
            Command::Migrate(a) => a.output,
            Command::Why(a) => a.output,
            Command::Ps(a)
            | Command::Node(NodeCommand::Ls(a))
            | Command::Cluster(ClusterCommand::Status(a)) => a.output,
            Command::Audit(AuditCommand::Verify(a)) => a.output,
            Command::Version(_) | Command::Pki(_) | Command::Man(_) | Command::Completions(_) => {
                Output::Text
            }
        };
        output == Output::Json
    }
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Text,
    /// For programs: stable keys, times in microseconds, sizes in bytes
    Json,
}

/// `ssictl migrate`.
#[derive(Args, Debug)]
pub(crate) struct Migrate {
    /// The process
    pub(crate) pid: u32,
    /// The node it goes to: `2`, `n2` or its name
    #[arg(long, value_name = "NODE")]
    pub(crate) to: String,
    /// Wait until its memory has followed it
    #[arg(long)]
    pub(crate) wait: bool,
    /// Give up waiting after this many seconds; the move itself goes on
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: Option<u64>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl why`.
#[derive(Args, Debug)]
pub(crate) struct Why {
    /// The process
    pub(crate) pid: u32,
    /// The node it would go to
    #[arg(long, value_name = "NODE")]
    pub(crate) to: Option<String>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// Commands that only show something.
#[derive(Args, Debug)]
pub(crate) struct Show {
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes as this one sees them
    Ls(Show),
}

/// `ssictl cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Ask every node how the cluster is; exit status 3 when something is wrong
    Status(Show),
}

/// `ssictl pki`.
#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make the cluster's certificate authority
    Init(PkiInit),
    /// Make the certificate of a node
    Issue(PkiIssue),
}

/// `ssictl pki init`.
#[derive(Args, Debug)]
pub(crate) struct PkiInit {
    /// Directory of the authority; it must not hold one
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// `ssictl pki issue`.
#[derive(Args, Debug)]
pub(crate) struct PkiIssue {
    /// Directory of the authority
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// The node: `2` or `n2`
    #[arg(long)]
    pub(crate) node: String,
    /// Its address
    #[arg(long, value_name = "IP")]
    pub(crate) addr: IpAddr,
    /// Where to write ca.pem, node.pem and node.key
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// `ssictl audit`.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no record of this node's audit log was changed, left out or put in
    Verify(AuditVerify),
}

/// `ssictl audit verify`.
#[derive(Args, Debug)]
pub(crate) struct AuditVerify {
    /// Directory of the log
    #[arg(value_name = "DIR", default_value = ssid::audit::DEFAULT_PATH)]
    pub(crate) dir: PathBuf,
    /// Hash of a record that must be there, as told by an earlier check and kept elsewhere
    #[arg(long, value_name = "HASH")]
    pub(crate) head: Option<Hash>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl man`.
#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Where to write them
    pub(crate) dir: PathBuf,
}

/// `ssictl completions`.
#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// For this shell
    pub(crate) shell: Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_grammar_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn wrong_usage_is_status_2() {
        for line in [
            "ssictl",
            "ssictl migrate 1",
            "ssictl migrate x --to n2",
            "ssictl ps -o xml",
            "ssictl audit verify --head 12",
        ] {
            let e = Arguments::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{line}");
        }
    }
}
