// SPDX-License-Identifier: MIT OR Apache-2.0

//! ssid, the node daemon of a Unum cluster.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use ssid::config::{Config, DEFAULT_PATH};
use ssid::seat::Store;
use ssid::service::{Reload, SetLog};
use ssid::sockets::Sockets;
use ssid::tls::{Identity, Revoked};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, reload};

/// Threads that wait for sockets and timers. Signs of life need one that nothing else holds up,
/// so there are two even on one processor.
const THREADS: usize = 2;

/// Longest wait, at the end, for work that cannot be cut short.
const LEAVE_IN: Duration = Duration::from_secs(1);

/// The node daemon of a Unum cluster.
#[derive(Debug, Parser)]
#[command(version, long_version = version())]
struct Arguments {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Check the configuration and the certificates, say what is wrong, and exit
    #[arg(long)]
    check_config: bool,
    /// Write the manual page into this directory, and exit
    #[arg(long, value_name = "DIR", hide = true)]
    man: Option<PathBuf>,
}

/// What decides which others it works with, before it is started.
fn version() -> String {
    format!(
        "{}, netlink protocol {}, daemon protocol {}",
        env!("CARGO_PKG_VERSION"),
        ssi::uapi::VERSION,
        ssid::msg::VERSION,
    )
}

fn main() -> ExitCode {
    // Before anything else is opened.
    let sockets = Sockets::inherited();
    let arguments = Arguments::parse();
    let (config, reload) = match prepare(&arguments) {
        Ok(Some(prepared)) => prepared,
        Ok(None) => return ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let sockets = sockets.unwrap_or_else(|e| {
        tracing::warn!("makes its sockets anew: what it was started with is of no use: {e}");
        Sockets::default()
    });
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|runtime| {
            let result = runtime.block_on(ssid::daemon::run(config, reload, sockets));
            // A file that is being read for a move, or the module, is not waited for: the next daemon is.
            runtime.shutdown_timeout(LEAVE_IN);
            Ok(result?)
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// All that comes before the log: what to run with, unless that was only to be checked.
fn prepare(arguments: &Arguments) -> anyhow::Result<Option<(Config, Reload)>> {
    if let Some(dir) = &arguments.man {
        man(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        return Ok(None);
    }
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        let path = arguments.config.display();
        match Store::open(&config.state)?.load()? {
            Some((seat, credentials)) => {
                Identity::of(seat.node, &credentials, Revoked::new())?;
                println!("{path}: good; this is {} of a cluster", seat.node);
            }
            None => println!("{path}: good; this machine is in no cluster"),
        }
        return Ok(None);
    }
    let reload = Reload {
        path: arguments.config.clone(),
        set_log: log(&config)?,
    };
    Ok(Some((config, reload)))
}

/// Writes ssid(8), from the grammar of the arguments.
fn man(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut page = File::create(dir.join("ssid.8"))?;
    clap_mangen::Man::new(Arguments::command())
        .section("8")
        .render(&mut page)
}

/// The filter meant by `text`, unless the environment names another.
fn filter(text: &str) -> anyhow::Result<EnvFilter> {
    let text = std::env::var("SSI_LOG").unwrap_or_else(|_| text.to_owned());
    EnvFilter::try_new(&text).with_context(|| format!("log: {text:?} is no log filter"))
}

/// To the journal when the service manager reads it, else to stderr. Returns what changes the filter.
fn log(config: &Config) -> anyhow::Result<SetLog> {
    let (filtered, handle) = reload::Layer::new(filter(&config.log)?);
    let registry = tracing_subscriber::registry().with(filtered);
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(journal).init();
    } else {
        let stderr = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false);
        registry.with(stderr).init();
    }
    Ok(Box::new(move |text| {
        let new = filter(text).map_err(|e| format!("{e:#}"))?;
        handle.reload(new).map_err(|e| e.to_string())
    }))
}
