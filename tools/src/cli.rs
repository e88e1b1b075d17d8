// SPDX-License-Identifier: MIT OR Apache-2.0

//! The grammar of the command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use ssi::id::MAX_NODE;
use ssid::config::DEFAULT_SOCKET;
use ssid::core::hash::Hash;

const EXIT_CODES: &str = "\
Exit status:
  0    done
  1    failed
  2    wrong usage
  3    the daemon, a node or the module is not running, or the cluster is degraded
  4    no such process or node, or not permitted
  5    refused: the process cannot move, or the cluster does not do it; the reason code says why
  6    the lock cannot be waited for: a deadlock
  7    the lock was lost while the command ran
  124  not done in time
`lock` ends with the status of the command it ran: 126 or 127 if that could not be run, 128 and the
signal if one ended it.";

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
    /// Show what happened in the cluster lately
    Events(Events),
    /// Run a command while a lock of the cluster is held
    Lock(Lock),
    /// Values that the nodes agree on
    #[command(subcommand)]
    Kv(KvCommand),
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
            Command::Ps(a) | Command::Version(a) => a.output,
            Command::Events(a) => a.output,
            Command::Node(command) => command.output(),
            Command::Cluster(command) => command.output(),
            Command::Lock(a) => match &a.command {
                Some(LockCommand::Ls(a)) => a.output,
                None => Output::Text,
            },
            Command::Kv(command) => command.output(),
            Command::Audit(AuditCommand::Verify(a)) => a.output,
            Command::Man(_) | Command::Completions(_) => Output::Text,
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

/// `ssictl events`.
#[derive(Args, Debug)]
pub(crate) struct Events {
    /// Go on with what happens
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl node`.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the nodes as this one sees them
    Ls(Show),
    /// Show all about a node
    Show(NodeShow),
    /// Make this machine a node of a cluster
    Join(NodeJoin),
    /// Take this node out of its cluster
    Leave(NodeLeave),
    /// Take another node out that is dead, or with --force one that is alive
    Remove(NodeRemove),
    /// Take another node out at once, alive or not, and believe its certificates no more
    Revoke(NodeName),
    /// Let nothing new move to a node; what runs there stays
    Cordon(NodeName),
    /// Let processes move to a node again
    Uncordon(NodeName),
    /// Hold nothing against a node any more that others accuse; one that is quarantined comes back
    Pardon(NodeName),
}

impl NodeCommand {
    fn output(&self) -> Output {
        match self {
            NodeCommand::Ls(a) => a.output,
            NodeCommand::Show(a) => a.output,
            NodeCommand::Join(a) => a.output,
            NodeCommand::Leave(_)
            | NodeCommand::Remove(_)
            | NodeCommand::Revoke(_)
            | NodeCommand::Cordon(_)
            | NodeCommand::Uncordon(_)
            | NodeCommand::Pardon(_) => Output::Text,
        }
    }
}

/// Commands about one node.
#[derive(Args, Debug)]
pub(crate) struct NodeName {
    /// The node: `2`, `n2` or its name
    pub(crate) node: String,
}

/// `ssictl node show`.
#[derive(Args, Debug)]
pub(crate) struct NodeShow {
    /// The node: `2`, `n2` or its name
    pub(crate) node: String,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl node join`.
#[derive(Args, Debug)]
pub(crate) struct NodeJoin {
    /// A node of the cluster: an IP address, with or without a port
    #[arg(value_name = "ADDR")]
    pub(crate) door: String,
    /// Token, as `ssictl cluster token create` told it
    #[arg(long, env = "SSI_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
    /// Hash of the cluster's authority, told along with the token
    #[arg(long, value_name = "HASH")]
    pub(crate) ca_hash: String,
    /// Name of this node; n and its number if not said
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where the others reach this node: an IP address, with or without a port; the one it
    /// connects from if not said
    #[arg(long, value_name = "IP[:PORT]")]
    pub(crate) addr: Option<String>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl node leave`.
#[derive(Args, Debug)]
pub(crate) struct NodeLeave {
    /// Even if processes end by it, or the other nodes cannot be told
    #[arg(long)]
    pub(crate) force: bool,
}

/// `ssictl node remove`.
#[derive(Args, Debug)]
pub(crate) struct NodeRemove {
    /// The node: `2`, `n2` or its name
    pub(crate) node: String,
    /// Even if it is alive
    #[arg(long)]
    pub(crate) force: bool,
}

/// `ssictl cluster`.
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Found a cluster with this machine as its first node, and say how others join
    Init(ClusterInit),
    /// Ask every node how the cluster is; exit status 3 when something is wrong
    Status(Show),
    /// Tokens, which let machines join
    #[command(subcommand)]
    Token(TokenCommand),
    /// The authority that certifies nodes
    #[command(subcommand)]
    Ca(CaCommand),
    /// Go on without nodes that are lost for good, and with them the majority of those who vote
    Recover(ClusterRecover),
}

impl ClusterCommand {
    fn output(&self) -> Output {
        match self {
            ClusterCommand::Init(a) => a.output,
            ClusterCommand::Status(a) | ClusterCommand::Token(TokenCommand::Ls(a)) => a.output,
            ClusterCommand::Token(TokenCommand::Create(a)) => a.output,
            ClusterCommand::Token(TokenCommand::Rm { .. })
            | ClusterCommand::Ca(_)
            | ClusterCommand::Recover(_) => Output::Text,
        }
    }
}

/// `ssictl cluster recover`.
#[derive(Args, Debug)]
pub(crate) struct ClusterRecover {
    /// A node that is off and will never be on again as it was; all that do not answer have to be named
    #[arg(long, value_name = "NODE", required = true, num_args = 1..)]
    pub(crate) without: Vec<String>,
}

/// `ssictl cluster init`.
#[derive(Args, Debug)]
pub(crate) struct ClusterInit {
    /// Name of the cluster; `unum` if not said
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Name of this node; n1 if not said
    #[arg(long)]
    pub(crate) node_name: Option<String>,
    /// Where the others reach this node: an IP address, with or without a port; needed if the machine
    /// has several
    #[arg(long, value_name = "IP[:PORT]")]
    pub(crate) addr: Option<String>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl cluster token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and say how a machine joins with it
    Create(TokenCreate),
    /// List the tokens that can still be used
    Ls(Show),
    /// Let nobody join with a token any more
    Rm {
        /// The part before the dot
        id: String,
    },
}

/// `ssictl cluster token create`.
#[derive(Args, Debug)]
pub(crate) struct TokenCreate {
    /// How long it is good for: 90s, 15m, 24h or 7d
    #[arg(long, default_value = "24h", value_parser = span)]
    pub(crate) ttl: Duration,
    /// For so many machines; for as many as a cluster can have if not said
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_NODE)))]
    pub(crate) uses: Option<u16>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl cluster ca`.
#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// Have another authority; every node gets a certificate of it before the old one is given up
    Rotate,
}

/// `ssictl lock`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Lock {
    #[command(subcommand)]
    pub(crate) command: Option<LockCommand>,
    #[command(flatten)]
    pub(crate) run: LockRun,
}

/// `ssictl lock`, other than by itself.
#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// List the locks that are held, and who waits for them
    Ls(Show),
}

/// `ssictl lock NAME -- CMD`.
#[derive(Args, Debug)]
pub(crate) struct LockRun {
    /// Name of the lock; those of users other than administrators begin with u, their number and /
    #[arg(required = true)]
    pub(crate) name: Option<String>,
    /// Hold it together with other readers
    #[arg(long)]
    pub(crate) read: bool,
    /// Wait for it so many seconds, 0 not to wait; a day if not said
    #[arg(long, value_name = "SECONDS", default_value = "86400", hide_default_value = true, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    pub(crate) wait: u64,
    /// It is free so many seconds after this node was last heard of; the command is told to end before
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) ttl: u64,
    /// The command and its arguments; finds the number of the grant in SSI_LOCK_TOKEN
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) run: Vec<OsString>,
}

/// `ssictl kv`.
#[derive(Debug, Subcommand)]
pub(crate) enum KvCommand {
    /// Write a value to stdout
    Get(KvGet),
    /// Set a value
    Put(KvPut),
    /// Set a value if it is of a certain revision still
    Cas(KvCas),
    /// Delete a value
    Rm(KvRm),
    /// List the values whose names begin with PREFIX
    Ls(KvLs),
    /// Show changes as they are made, until interrupted
    Watch(KvWatch),
}

impl KvCommand {
    fn output(&self) -> Output {
        match self {
            KvCommand::Get(a) => a.output,
            KvCommand::Put(a) => a.output,
            KvCommand::Cas(a) => a.output,
            KvCommand::Rm(a) => a.output,
            KvCommand::Ls(a) => a.output,
            KvCommand::Watch(a) => a.output,
        }
    }
}

/// `ssictl kv get`.
#[derive(Args, Debug)]
pub(crate) struct KvGet {
    /// Name of the value
    pub(crate) name: String,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl kv put`.
#[derive(Args, Debug)]
pub(crate) struct KvPut {
    /// Name of the value
    pub(crate) name: String,
    /// The value, or - for what stdin has
    pub(crate) value: String,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl kv cas`.
#[derive(Args, Debug)]
pub(crate) struct KvCas {
    /// Name of the value
    pub(crate) name: String,
    /// The revision it must be of; 0 if there must be none
    pub(crate) revision: u64,
    /// The value, or - for what stdin has
    pub(crate) value: String,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl kv rm`.
#[derive(Args, Debug)]
pub(crate) struct KvRm {
    /// Name of the value
    pub(crate) name: String,
    /// Only if it is of this revision
    #[arg(long)]
    pub(crate) revision: Option<u64>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl kv ls`.
#[derive(Args, Debug)]
pub(crate) struct KvLs {
    /// What the names begin with
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// `ssictl kv watch`.
#[derive(Args, Debug)]
pub(crate) struct KvWatch {
    /// What the names begin with
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) prefix: String,
    /// Begin after this revision; with what is to come if not said
    #[arg(long, value_name = "REVISION")]
    pub(crate) after: Option<u64>,
    /// How to write the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

/// A span of time: a number and s, m, h or d.
fn span(text: &str) -> Result<Duration, &'static str> {
    const WRONG: &str = "a number and s, m, h or d is wanted";
    let unit_s = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 24 * 3600,
        _ => return Err(WRONG),
    };
    let digits = text.get(..text.len() - 1).unwrap_or_default();
    let number: u64 = digits.parse().map_err(|_| WRONG)?;
    let seconds = number.checked_mul(unit_s).filter(|s| *s > 0);
    seconds.map(Duration::from_secs).ok_or(WRONG)
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
    fn a_lock_is_named_or_listed() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' ')).unwrap().command;
        let Command::Lock(a) = parse("ssictl lock a --read --wait 0 -- cmd -o json") else {
            panic!("no lock");
        };
        assert_eq!(a.run.name.as_deref(), Some("a"));
        assert_eq!((a.run.read, a.run.wait, a.run.ttl), (true, 0, 15));
        assert_eq!(a.run.run, ["cmd", "-o", "json"]);
        assert!(parse("ssictl lock ls -o json").wants_json());
    }

    #[test]
    fn wrong_usage_is_status_2() {
        for line in [
            "ssictl",
            "ssictl migrate 1",
            "ssictl migrate x --to n2",
            "ssictl ps -o xml",
            "ssictl audit verify --head 12",
            "ssictl cluster token create --ttl 3x",
            "ssictl cluster token create --ttl 0h",
            "ssictl node join 10.0.0.1 --token a.b",
            "ssictl lock a",
            "ssictl lock a true",
            "ssictl lock -- true",
            "ssictl lock a --ttl 0 -- true",
            "ssictl kv cas a b c",
        ] {
            let e = Arguments::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(e.exit_code(), 2, "{line}");
        }
    }
}
