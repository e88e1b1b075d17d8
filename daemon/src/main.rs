// SPDX-License-Identifier: MIT OR Apache-2.0

//! ssid, the node daemon of a Unum cluster.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use ssid::config::{Config, DEFAULT_PATH};
use ssid::tls::Identity;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::prelude::*;

/// Threads that wait for sockets and timers. Signs of life need one that nothing else holds up,
/// so there are two even on one processor.
const THREADS: usize = 2;

/// The node daemon of a Unum cluster.
#[derive(Debug, Parser)]
#[command(version)]
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

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let config = match prepare(&arguments) {
        Ok(Some(config)) => config,
        Ok(None) => return ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            return ExitCode::FAILURE;
        }
    };
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")
        .and_then(|r| Ok(r.block_on(ssid::daemon::run(config))?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

/// All that comes before the log: the configuration to run with, unless it was only to be checked.
fn prepare(arguments: &Arguments) -> anyhow::Result<Option<Config>> {
    if let Some(dir) = &arguments.man {
        man(dir).with_context(|| format!("cannot write to {}", dir.display()))?;
        return Ok(None);
    }
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        Identity::load(&config)?;
        let path = arguments.config.display();
        println!(
            "{path}: good; this is {} of {} nodes",
            config.node,
            config.nodes.len()
        );
        return Ok(None);
    }
    log(&config)?;
    Ok(Some(config))
}

/// Writes ssid(8), from the grammar of the arguments.
fn man(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut page = File::create(dir.join("ssid.8"))?;
    clap_mangen::Man::new(Arguments::command())
        .section("8")
        .render(&mut page)
}

/// To the journal when the service manager reads it, else to stderr.
fn log(config: &Config) -> anyhow::Result<()> {
    let text = std::env::var("SSI_LOG").unwrap_or_else(|_| config.log.clone());
    let filter =
        EnvFilter::try_new(&text).with_context(|| format!("log: {text:?} is no log filter"))?;
    let registry = tracing_subscriber::registry().with(filter);
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
    Ok(())
}
