// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon as a service: what the service manager is told, and what SIGHUP changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::audit::{Audit, Event};
use crate::config::Config;
use crate::net::Net;
use crate::tls::Identity;

/// Puts another log filter in place, or says why not.
pub type SetLog = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What is needed to read the configuration again.
pub struct Reload {
    /// The file.
    pub path: PathBuf,
    /// Applies its `log`.
    pub set_log: SetLog,
}

impl std::fmt::Debug for Reload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reload")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Tells the service manager, if there is one that wants to know.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::warn!("cannot tell the service manager: {e}");
    }
}

/// The daemon serves.
pub fn ready(config: &Config) {
    let text = format!("{} of {} nodes", config.node, config.nodes.len());
    tell(&[NotifyState::Ready, NotifyState::Status(&text)]);
}

/// It will end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the service manager again and again that the daemon's tasks still run, if it asked for that.
pub async fn watchdog() {
    // Twice as often as it must be, as sd_watchdog_enabled(3) says.
    let Some(every) = sd_notify::watchdog_enabled().map(|t| t / 2) else {
        return;
    };
    let mut beat = tokio::time::interval(every.max(Duration::from_millis(1)));
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

impl Reload {
    /// Reads the configuration and the certificates again. What is wrong with them is said, and
    /// then nothing changes.
    pub fn reload(&self, running: &Config, net: &Net, audit: &Audit) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(e) => tracing::warn!("no clock: {e}"),
        }
        let result = self.apply(running, net);
        audit.record(Event::Reloaded {
            outcome: result.clone().err().unwrap_or_else(|| "done".to_owned()),
        });
        match result {
            Ok(()) => tracing::info!("configuration and certificates read again"),
            Err(e) => tracing::error!("what ran before runs on: {e}"),
        }
        ready(running);
    }

    fn apply(&self, running: &Config, net: &Net) -> Result<(), String> {
        let text = |e: anyhow::Error| format!("{e:#}");
        let new = Config::load(&self.path).map_err(|e| text(e.into()))?;
        let identity = Identity::load(&Config {
            // Whose certificate it must be is not for the file to say any more.
            node: running.node,
            ..new.clone()
        })
        .map_err(|e| text(e.into()))?;
        (self.set_log)(&new.log)?;
        net.set_identity(Arc::new(identity));
        for key in running.fixed_changes(&new) {
            tracing::warn!("{key} has changed: that needs a restart of ssid");
        }
        Ok(())
    }
}
