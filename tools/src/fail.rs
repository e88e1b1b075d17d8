// SPDX-License-Identifier: MIT OR Apache-2.0

//! What went wrong, as exit status and as words.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use ssid::api::{self, ErrorParameters, INTERFACE};
use ssid::failure::in_full;
use ssid::varlink;

use crate::out;

/// Exit statuses; clap itself exits with 2 on wrong usage.
const FAILED: u8 = 1;
pub(crate) const NOT_RUNNING: u8 = 3;
const NOT_FOUND: u8 = 4;
const REFUSED: u8 = 5;
const DEADLOCK: u8 = 6;
const LOST: u8 = 7;
const TIMEOUT: u8 = 124;
const NOT_RUNNABLE: u8 = 126;
const NO_COMMAND: u8 = 127;

/// A command failed.
#[derive(Debug)]
pub(crate) struct Fail {
    status: u8,
    parameters: ErrorParameters,
}

impl Fail {
    fn new(status: u8, message: impl Into<String>, hint: impl Into<String>) -> Self {
        let hint = Some(hint.into()).filter(|h| !h.is_empty());
        Self {
            status,
            parameters: ErrorParameters {
                message: message.into(),
                hint,
                ..ErrorParameters::default()
            },
        }
    }

    /// An error with no status of its own.
    pub(crate) fn other(e: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(FAILED, in_full(e), "")
    }

    /// A check that came out badly.
    pub(crate) fn said(message: impl Into<String>, hint: &str) -> Self {
        Self::new(FAILED, message, hint)
    }

    /// Refused here: the daemon would say the same.
    pub(crate) fn refused(reason: &str, message: impl Into<String>) -> Self {
        let mut fail = Self::new(REFUSED, message, "");
        fail.parameters.reason = Some(reason.to_owned());
        fail
    }

    /// Not done in time.
    pub(crate) fn timeout(hint: &str) -> Self {
        Self::new(TIMEOUT, "no answer in time", hint)
    }

    /// The lock was lost while a command ran.
    pub(crate) fn lost(why: &str) -> Self {
        let hint = "who has it now has a higher SSI_LOCK_TOKEN";
        Self::new(LOST, format!("the lock is lost: {why}"), hint)
    }

    /// A command cannot be run.
    pub(crate) fn unrunnable(command: &str, e: &std::io::Error) -> Self {
        let status = match e.kind() {
            std::io::ErrorKind::NotFound => NO_COMMAND,
            _ => NOT_RUNNABLE,
        };
        Self::new(status, format!("cannot run {command}: {e}"), "")
    }

    /// What to say, for people.
    pub(crate) fn message(&self) -> &str {
        &self.parameters.message
    }

    /// A call on `socket` failed.
    pub(crate) fn call(socket: &Path, e: varlink::Error) -> Self {
        match e {
            varlink::Error::Connect(e) => Self::new(
                NOT_RUNNING,
                format!("cannot reach ssid on {}: {e}", socket.display()),
                "start it with `systemctl start ssid` or `ssid`, or name its socket with --socket",
            ),
            varlink::Error::Closed => {
                Self::new(NOT_RUNNING, "ssid ended the connection", "its log says why")
            }
            varlink::Error::Timeout => {
                Self::timeout("it may have been done, or may yet be: look before you try again")
            }
            varlink::Error::Reply { name, parameters } => Self::reply(&name, parameters),
            e => Self::other(&e),
        }
    }

    fn reply(name: &str, parameters: serde_json::Value) -> Self {
        let own = name
            .strip_prefix(INTERFACE)
            .and_then(|n| n.strip_prefix('.'));
        let status = match own {
            Some(api::error::REFUSED) => REFUSED,
            Some(api::error::NOT_FOUND | api::error::NOT_PERMITTED) => NOT_FOUND,
            Some(api::error::UNAVAILABLE) => NOT_RUNNING,
            _ => {
                return Self::new(
                    FAILED,
                    format!("ssid answers {name} {parameters}"),
                    "`ssictl version` shows whether both are of one version",
                );
            }
        };
        let parameters: ErrorParameters = match serde_json::from_value(parameters) {
            Ok(parameters) => parameters,
            Err(e) => return Self::other(&e),
        };
        let status = match parameters.reason.as_deref() {
            Some("deadlock") => DEADLOCK,
            Some("lock-timeout") => TIMEOUT,
            Some("no-value") => NOT_FOUND,
            _ => status,
        };
        Self { status, parameters }
    }

    /// Tells the user: words on stderr, and an object on stdout if that is what they want.
    pub(crate) fn report(self, as_json: bool) -> ExitCode {
        eprintln!("error: {}", printable(&self.parameters.message));
        if let Some(hint) = self.parameters.hint.as_deref().filter(|h| !h.is_empty()) {
            eprintln!("hint: {}", printable(hint));
        }
        if as_json {
            // The status says it all, should this fail.
            let _ = out::json(&json!({ "error": self.parameters, "status": self.status }));
        }
        ExitCode::from(self.status)
    }
}

/// A line, whatever names of files and processes are in it: no terminal is told what to do by it.
fn printable(text: &str) -> String {
    let chars = text.chars().map(|c| match c.is_control() {
        true => c.escape_debug().to_string(),
        false => c.to_string(),
    });
    chars.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str) -> u8 {
        status_of(name, "file-kind")
    }

    fn status_of(name: &str, reason: &str) -> u8 {
        let parameters = json!({ "message": "m", "reason": reason, "later": 1 });
        Fail::call(
            Path::new("/s"),
            varlink::Error::Reply {
                name: name.to_owned(),
                parameters,
            },
        )
        .status
    }

    #[test]
    fn every_error_has_its_status() {
        assert_eq!(status("io.unum.Cluster.Refused"), 5);
        assert_eq!(status("io.unum.Cluster.NotFound"), 4);
        assert_eq!(status("io.unum.Cluster.NotPermitted"), 4);
        assert_eq!(status("io.unum.Cluster.Unavailable"), 3);
        assert_eq!(status_of("io.unum.Cluster.Refused", "held"), 5);
        assert_eq!(status_of("io.unum.Cluster.Refused", "deadlock"), 6);
        assert_eq!(status_of("io.unum.Cluster.Refused", "lock-timeout"), 124);
        assert_eq!(status_of("io.unum.Cluster.Refused", "no-value"), 4);
        assert_eq!(status("org.varlink.service.MethodNotFound"), 1);
        assert_eq!(
            Fail::call(Path::new("/s"), varlink::Error::Timeout).status,
            124
        );
        let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(
            Fail::call(Path::new("/s"), varlink::Error::Connect(gone)).status,
            3
        );
    }
}
