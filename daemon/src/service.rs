// SPDX-License-Identifier: MIT OR Apache-2.0

//! The daemon as a service: what the service manager is told, and what SIGHUP changes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::audit::{DONE, Event};
use crate::config::Config;
use crate::failure::in_full;
use crate::stage::Stage;

/// How often it is looked whether there is something else to tell.
const STATUS_EVERY: Duration = Duration::from_secs(2);

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

/// What this machine is, in a few words.
fn status(stage: &Stage) -> String {
    match stage.cluster() {
        Ok(c) => format!("{} of {} nodes", c.own(), c.roster().entries().len()),
        Err(f) => f.to_string(),
    }
}

/// The daemon serves.
pub fn ready(stage: &Stage) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status(stage))]);
}

/// Tells the service manager what this machine is, whenever that has changed.
pub async fn follow(stage: Arc<Stage>) {
    let mut told = String::new();
    loop {
        let now = status(&stage);
        if now != told {
            tell(&[NotifyState::Status(&now)]);
            told = now;
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
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
    /// Reads the configuration again. What is wrong with it is said, and then nothing changes.
    pub fn reload(&self, stage: &Stage) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => tell(&[NotifyState::Reloading, now]),
            Err(e) => tracing::warn!("no clock: {e}"),
        }
        let result = self.apply(stage);
        stage.audit().record(Event::Reloaded {
            outcome: result.clone().err().unwrap_or_else(|| DONE.to_owned()),
        });
        match result {
            Ok(()) => tracing::info!("configuration read again"),
            Err(e) => tracing::error!("what ran before runs on: {e}"),
        }
        ready(stage);
    }

    fn apply(&self, stage: &Stage) -> Result<(), String> {
        let new = Config::load(&self.path).map_err(|e| in_full(&e))?;
        (self.set_log)(&new.log)?;
        stage.set_policy(new.guests.clone());
        for key in stage.config().fixed_changes(&new) {
            tracing::warn!("{key} has changed: that needs a restart of ssid");
        }
        Ok(())
    }
}
