// SPDX-License-Identifier: MIT OR Apache-2.0

//! Commands on this host, each with an end: nothing here waits for ever.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What a command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status; 128 + N when signal N ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Everything at once, for messages.
    pub fn evidence(&self) -> String {
        let (out, err) = (self.text(), self.errors());
        format!(
            "status {}\nstdout: {}\nstderr: {}",
            self.status,
            tail(&out),
            tail(&err)
        )
    }
}

/// The end of a long text.
pub fn tail(text: &str) -> &str {
    const MOST: usize = 3000;
    let text = text.trim_end();
    let mut from = text.len().saturating_sub(MOST);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// Status as a shell tells it.
pub fn shell_status(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .or(status.signal().map(|n| 128 + n))
        .unwrap_or(255)
}

/// Waits for a child until a moment. `None` when it still runs then.
pub fn wait_until(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command to its end, for `limit` at most, and gives it `input`.
pub fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<Output> {
    let end = Instant::now() + limit;
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    let mut stdin = child.stdin.take().context("no pipe to the command")?;
    let input = input.to_vec();
    thread::spawn(move || {
        // A command may end without reading all of it.
        let _ = stdin.write_all(&input);
    });
    let stdout = collect(child.stdout.take().context("no pipe from the command")?);
    let stderr = collect(child.stderr.take().context("no pipe from the command")?);

    let status = wait_until(&mut child, end)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    // Something the command left behind may hold its streams.
    let grace = Duration::from_secs(2);
    let stdout = stdout.recv_timeout(grace).unwrap_or_default();
    let stderr = stderr.recv_timeout(grace).unwrap_or_default();
    let Some(status) = status else {
        bail!(
            "no end after {} s: {what}\nstdout: {}\nstderr: {}",
            limit.as_secs(),
            tail(&String::from_utf8_lossy(&stdout)),
            tail(&String::from_utf8_lossy(&stderr))
        );
    };
    Ok(Output {
        status: shell_status(status),
        stdout,
        stderr,
    })
}

fn collect(mut from: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (to, all) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error still counts.
        let _ = from.read_to_end(&mut bytes);
        let _ = to.send(bytes);
    });
    all
}

/// Asks until the answer is yes, every 200 ms, for `limit` at most.
pub fn eventually(limit: Duration, mut ask: impl FnMut() -> Result<Option<String>>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let Some(why_not) = ask()? else { return Ok(()) };
        if Instant::now() >= end {
            bail!("not within {} s: {why_not}", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn streams_and_status_come_back() {
        let output = run(
            sh("cat; echo err >&2; exit 5"),
            b"in",
            Duration::from_secs(10),
        )
        .unwrap();
        assert_eq!(
            (output.status, output.text(), output.errors()),
            (5, "in".into(), "err\n".into())
        );
        let output = run(sh("kill -9 $$"), b"", Duration::from_secs(10)).unwrap();
        assert_eq!(output.status, 137);
    }

    #[test]
    fn a_command_without_end_is_ended() {
        let error = run(
            sh("echo here; exec sleep 60"),
            b"",
            Duration::from_millis(300),
        )
        .unwrap_err();
        assert!(error.to_string().contains("here"), "{error}");
    }

    #[test]
    fn the_tail_of_a_text_begins_at_a_character() {
        let text = "ä".repeat(5000);
        assert!(tail(&text).len() <= 3000);
    }
}
