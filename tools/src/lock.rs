// SPDX-License-Identifier: MIT OR Apache-2.0

//! Commands that run while a lock is held, and the list of locks.
//!
//! The lock belongs to the connection to the daemon and is renewed while the command runs. What counts
//! is when a renewal was asked for: from then on the lease is good for its time. A third of that later
//! it is renewed; when a sixth of it is left and it is not, it is given up for lost, and the command
//! told to end.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Value, json};
use ssid::api::INTERFACE;
use ssid::api::lock::{AcquireParameters, AcquireReply, LocksReply, Party, ReleaseParameters};
use ssid::core::lock::Mode;
use ssid::varlink::{self, Client};

use crate::cli::{LockRun, Output};
use crate::fail::Fail;
use crate::show::{print, table};
use crate::{ask, out};

/// The daemon answers in this time, the wait for a lock not counted.
const ANSWER_IN: Duration = Duration::from_secs(60);
/// How long to wait for the lock to be given up when the command has ended. It is by the end of the connection too, later.
const RELEASE_IN: Duration = Duration::from_secs(2);
/// A command that is told to end has so long to do it.
const END_IN: Duration = Duration::from_secs(5);
/// Where a command finds the number of the grant.
const TOKEN: &str = "SSI_LOCK_TOKEN";
/// Where a command that runs this tool finds who waits for it.
const SESSION: &str = "SSI_LOCK_SESSION";

/// Pause before a lease is renewed that could not be just now.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// A lock that is held.
struct Lease {
    client: Client,
    name: String,
    ttl: Duration,
    /// When the renewal that counts was asked for.
    renewed: Instant,
}

impl Lease {
    /// Until then the lease is good.
    fn ends(&self) -> Instant {
        self.renewed + self.ttl
    }

    fn renew(&mut self) -> Result<(), varlink::Error> {
        let now = Instant::now();
        let left = self.ends().saturating_duration_since(now);
        self.client.set_timeout(left * 3 / 4)?;
        let method = format!("{INTERFACE}.Renew");
        self.client.call::<Value>(&method, &json!({}), drop)?;
        self.renewed = now;
        Ok(())
    }

    /// Gives the lock up: whoever asks after this tool has ended asks after that.
    fn release(mut self) -> Result<(), varlink::Error> {
        self.client.set_timeout(RELEASE_IN)?;
        let parameters = ReleaseParameters { name: self.name };
        let method = format!("{INTERFACE}.Release");
        self.client.call::<Value>(&method, &parameters, drop)?;
        Ok(())
    }
}

/// Signals as something to wait for.
struct Signals(mpsc::Receiver<Signal>);

impl Signals {
    /// From now on signals that would end this process are told here, as are ends of children. Those
    /// that are ignored stay so. They are caught and not blocked: a command would be started with
    /// them blocked.
    fn new() -> io::Result<Self> {
        let wanted = [
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGHUP,
        ];
        let ignored = ignored(&fs::read_to_string("/proc/self/status")?);
        let caught = wanted.into_iter().filter(|s| !has(ignored, *s));
        let caught = caught.chain([Signal::SIGCHLD]).map(|s| s as i32);
        let mut signals = signal_hook::iterator::Signals::new(caught)?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for number in &mut signals {
                let told = Signal::try_from(number).map(|s| sender.send(s));
                if !matches!(told, Ok(Ok(()))) {
                    return;
                }
            }
        });
        Ok(Self(receiver))
    }

    /// The next signal, if there is one by then.
    fn next(&self, until: Instant) -> Option<Signal> {
        let left = until.saturating_duration_since(Instant::now());
        self.0.recv_timeout(left).ok()
    }
}

/// The signals that are ignored, a bit each, as `/proc/PID/status` says.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok())
        .unwrap_or(0)
}

fn has(signals: u64, signal: Signal) -> bool {
    signals >> (signal as i32 - 1) & 1 != 0
}

/// Runs a command while the lock is held. Its exit status is the command's.
pub(crate) fn run(socket: &Path, a: &LockRun) -> Result<ExitCode, Fail> {
    let Some((program, arguments)) = a.run.split_first() else {
        return Err(Fail::said("no command", ""));
    };
    let (mut lease, reply) = acquire(socket, a)?;
    let signals = Signals::new().map_err(|e| Fail::other(&e))?;
    let child = Command::new(program)
        .args(arguments)
        .env(TOKEN, reply.token.to_string())
        .env(SESSION, reply.session)
        .spawn();
    let mut child = child.map_err(|e| Fail::unrunnable(&program.to_string_lossy(), &e))?;
    let why = match hold(&mut lease, &signals, &mut child) {
        Ok(status) => {
            // What comes of it does not change what the command did.
            let _ = lease.release();
            return Ok(exit_code(status));
        }
        Err(why) => why,
    };
    tell(&child, Signal::SIGTERM);
    let until = Instant::now() + END_IN;
    while Instant::now() < until && !has_ended(&mut child) {
        signals.next(until);
    }
    Err(Fail::lost(&why))
}

fn acquire(socket: &Path, a: &LockRun) -> Result<(Lease, AcquireReply), Fail> {
    let wait = Duration::from_secs(a.wait);
    let parameters = AcquireParameters {
        name: a.name.clone().unwrap_or_default(),
        mode: if a.read { Mode::Read } else { Mode::Write },
        wait_ms: (a.wait > 0).then_some(a.wait * 1000),
        ttl_ms: Some(a.ttl * 1000),
        parent: std::env::var(SESSION).ok(),
    };
    let begun = Instant::now();
    let call = || {
        let mut client = Client::connect(socket, Some(wait + ANSWER_IN))?;
        let reply = acquire_on(&mut client, &parameters)?;
        Ok((client, reply))
    };
    let (client, reply) = call().map_err(|e| Fail::call(socket, e))?;
    let ttl = Duration::from_millis(reply.ttl_ms);
    let mut lease = Lease {
        client,
        name: parameters.name,
        ttl,
        renewed: begun,
    };
    if begun.elapsed() > ttl / 3 {
        // The daemon renewed it while it waited, but does not say when.
        lease.renewed = Instant::now();
        lease.renew().map_err(|e| Fail::call(socket, e))?;
    }
    Ok((lease, reply))
}

fn acquire_on(
    client: &mut Client,
    parameters: &impl Serialize,
) -> Result<AcquireReply, varlink::Error> {
    client.call(&format!("{INTERFACE}.Acquire"), parameters, drop)
}

/// Holds the lock until the command has ended; an error is why it is lost.
fn hold(lease: &mut Lease, signals: &Signals, child: &mut Child) -> Result<ExitStatus, String> {
    let mut again = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return Ok(status);
        }
        let next = again.max(lease.renewed + lease.ttl / 3);
        match signals.next(next) {
            // The terminal sends these to the command as well.
            Some(Signal::SIGINT | Signal::SIGQUIT | Signal::SIGCHLD) => {}
            Some(signal) => tell(child, signal),
            None if Instant::now() >= next => match lease.renew() {
                Ok(()) => {}
                Err(e) if is_passing(&e) && Instant::now() < lease.ends() - lease.ttl / 6 => {
                    again = Instant::now() + RENEW_AGAIN;
                }
                Err(e) => return Err(Fail::call(Path::new(""), e).message().to_owned()),
            },
            None => {}
        }
    }
}

/// Whether the next try may be answered otherwise: just now nothing can be agreed on, as while nobody leads.
fn is_passing(e: &varlink::Error) -> bool {
    matches!(e, varlink::Error::Reply { name, .. } if name.ends_with(".Unavailable"))
}

/// Sends the command a signal. It is not gone as long as nobody has asked how it ended.
fn tell(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // One that has ended needs none.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

fn has_ended(child: &mut Child) -> bool {
    !matches!(child.try_wait(), Ok(None))
}

/// The status a shell would give.
fn exit_code(status: ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s));
    ExitCode::from(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1))
}

/// Lists the locks.
pub(crate) fn list(socket: &Path, output: Output) -> Result<(), Fail> {
    let reply: LocksReply = ask::once(socket, "Locks", &json!({}))?;
    if output == Output::Json {
        return out::json(&reply.locks);
    }
    let mut rows = table(
        ["NAME", "STATE", "MODE", "NODE", "UID", "TOKEN"],
        &[3, 4, 5],
    );
    for lock in reply.locks {
        let mut row = |p: &Party, state: &str| {
            let token = if p.token == 0 {
                String::new()
            } else {
                p.token.to_string()
            };
            rows.add_row([
                lock.name.clone(),
                state.to_owned(),
                p.mode.name().to_owned(),
                p.node.to_string(),
                p.uid.to_string(),
                token,
            ]);
        };
        let holds = |p: &Party| if p.kept { "kept" } else { "held" };
        lock.holders.iter().for_each(|p| row(p, holds(p)));
        lock.waiting.iter().for_each(|p| row(p, "waiting"));
    }
    print(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_known() {
        let bits = ignored("Name:\tx\nSigIgn:\t0000000000000003\nSigCgt:\t00000000000000ff\n");
        assert!(has(bits, Signal::SIGHUP) && has(bits, Signal::SIGINT));
        assert!(!has(bits, Signal::SIGTERM));
        assert_eq!(ignored("nothing"), 0);
    }
}
