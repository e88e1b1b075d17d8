// SPDX-License-Identifier: MIT OR Apache-2.0

//! The leader of a terminal's session.
//!
//! When a session leader ends, the kernel hangs its terminal up. Were the command itself the leader, whatever it
//! leaves behind would lose its streams with it. So the leader is a process of its own: it runs the command as
//! the foreground job, reports its status, and stays until the agent has no more use for the terminal.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, getpgrp, ioctl_tiocsctty, kill_process_group, setsid, waitpid,
};
use rustix::stdio::dup2_stdin;
use rustix::termios::{tcgetpgrp, tcsetpgrp};

use crate::job;

/// Runs `words` on the terminal that is standard input; the exit status goes to standard output as one byte.
pub fn lead(words: Vec<OsString>) -> io::Result<ExitCode> {
    setsid()?;
    ioctl_tiocsctty(io::stdin())?;
    let terminal = || io::stdin().as_fd().try_clone_to_owned().map(Stdio::from);
    let child = Command::new(std::env::current_exe()?)
        .arg("foreground")
        .args(words)
        .process_group(0)
        .stdin(terminal()?)
        .stdout(terminal()?)
        .stderr(terminal()?)
        .spawn()?;
    let pid = Pid::from_child(&child);
    tcsetpgrp(io::stdin(), pid)?;
    // Only the command and its children hold the terminal open from here on.
    dup2_stdin(File::open("/dev/null")?)?;

    let status = loop {
        let Some((_, status)) = waitpid(Some(pid), WaitOptions::UNTRACED)? else {
            continue;
        };
        match status.stopping_signal() {
            None => break std::process::ExitStatus::from_raw(status.as_raw()),
            // There is no shell here that could continue a job which the terminal has stopped.
            Some(by) if by != Signal::STOP.as_raw() => kill_process_group(pid, Signal::CONT)?,
            Some(_) => (),
        }
    };
    io::stdout().write_all(&[job::status_byte(status)])?;
    io::stdout().flush()?;
    // The agent ends this process, or the terminal's hang-up does.
    loop {
        std::thread::park();
    }
}

/// Waits until this process group is the terminal's foreground, then becomes the command.
pub fn foreground(words: Vec<OsString>) -> io::Result<ExitCode> {
    while tcgetpgrp(io::stdin())? != getpgrp() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (program, args) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let error = Command::new(program).args(args).exec();
    let (message, status) = job::not_started(program, &error);
    let _ = io::stderr().write_all(message.as_bytes());
    Ok(ExitCode::from(status))
}
