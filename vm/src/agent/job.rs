// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a client has asked for, while it runs: a command, or a file that comes in.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A running command. Its streams belong to the agent's end and do not block.
pub struct Job {
    child: Child,
    /// Readable when the command has ended.
    pub ended: OwnedFd,
    /// `None` when closed, or when the command has closed its end.
    pub stdin: Option<OwnedFd>,
    /// Standard output and standard error; a terminal has one stream for both.
    pub streams: [Option<OwnedFd>; 2],
    /// The terminal, if there is one.
    pub terminal: Option<OwnedFd>,
}

/// The exit status as a shell tells it.
pub fn status_byte(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or(status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

/// Message and exit status for a command that could not be started, as a shell gives them.
pub fn not_started(program: &OsStr, error: &io::Error) -> (String, u8) {
    let status = if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    (format!("{}: {error}\n", program.display()), status)
}

fn command(program: &OsStr, term: Option<&OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", "/bin/bash")
        .env("LANG", "C.UTF-8")
        .env("TERM", term.unwrap_or(OsStr::new("dumb")))
        .current_dir("/root");
    command
}

fn nonblocking(fd: impl Into<OwnedFd>) -> io::Result<OwnedFd> {
    let fd = fd.into();
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    Ok(fd)
}

fn set_size(terminal: impl AsFd, (ws_row, ws_col): (u16, u16)) {
    // A terminal that takes no size keeps the one it has.
    let _ = tcsetwinsize(
        terminal,
        Winsize {
            ws_row,
            ws_col,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    );
}

impl Job {
    /// Starts a command, on a terminal of `size` if `term` names one.
    pub fn start(term: Option<&OsStr>, words: &[OsString], size: (u16, u16)) -> io::Result<Self> {
        let (program, args) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        if let Some(term) = term {
            return Self::start_on_terminal(term, words, size);
        }
        let mut child = command(program, None)
            .args(args)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self {
            ended: pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?,
            stdin: child.stdin.take().map(nonblocking).transpose()?,
            streams: [
                child.stdout.take().map(nonblocking).transpose()?,
                child.stderr.take().map(nonblocking).transpose()?,
            ],
            terminal: None,
            child,
        })
    }

    fn start_on_terminal(term: &OsStr, words: &[OsString], size: (u16, u16)) -> io::Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::NOCTTY.bits().cast_signed())
            .open(OsStr::new(
                ptsname(&master, Vec::new())?.to_str().unwrap_or_default(),
            ))?;
        set_size(&master, size);
        let mut child = command(std::env::current_exe()?.as_os_str(), Some(term))
            .arg("lead")
            .args(words)
            .stdin(slave)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let master = nonblocking(master)?;
        Ok(Self {
            ended: child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?.into(),
            stdin: Some(master.try_clone()?),
            streams: [Some(master.try_clone()?), None],
            terminal: Some(master),
            child,
        })
    }

    /// Gives the terminal its size.
    pub fn resize(&self, rows: u16, columns: u16) {
        if let Some(terminal) = &self.terminal {
            set_size(terminal, (rows, columns));
        }
    }

    /// The status of a command that has ended.
    pub fn status(&mut self) -> u8 {
        if self.terminal.is_none() {
            return self.child.wait().map_or(255, status_byte);
        }
        // The leader says it, and no more if it was killed.
        let mut byte = [0];
        match rustix::io::read(&self.ended, &mut byte) {
            Ok(1) => byte[0],
            _ => 128 + u8::try_from(Signal::KILL.as_raw()).unwrap_or_default(),
        }
    }

    /// Hangs up: the client has gone before the command.
    pub fn hang_up(mut self) {
        if self.terminal.is_some() {
            // Closing the terminal tells its processes.
            (self.stdin, self.terminal, self.streams) = (None, None, [None, None]);
        } else {
            // It may have ended meanwhile; a stopped one hears of it only when continued.
            let group = Pid::from_child(&self.child);
            let _ = kill_process_group(group, Signal::HUP);
            let _ = kill_process_group(group, Signal::CONT);
        }
        self.let_go();
    }

    /// Leaves what the command has left behind alone: reads its streams until nobody holds them, so that no one
    /// dies of a closed pipe or waits on a full one.
    pub fn let_go(mut self) {
        self.stdin = None;
        let terminal = self.terminal.take();
        let drain = move || {
            let mut sink = vec![0; 4096];
            while self.streams.iter().any(Option::is_some) {
                for stream in &mut self.streams {
                    if let Some(fd) = &*stream
                        && !matches!(read(fd, &mut sink), Ok(Got::Bytes(_) | Got::Nothing))
                    {
                        *stream = None;
                    }
                }
                let mut fds: Vec<_> = self
                    .streams
                    .iter()
                    .flatten()
                    .map(|fd| PollFd::new(fd, PollFlags::IN))
                    .collect();
                if fds.is_empty() || poll(&mut fds, None).is_err() {
                    break;
                }
            }
            if terminal.is_some() {
                let _ = self.child.kill();
            }
            let _ = self.child.wait();
        };
        // Without a thread the streams close now: hard on those who hold them, but the agent goes on.
        let _ = thread::Builder::new().stack_size(64 << 10).spawn(drain);
    }
}

/// What a read of a stream that does not block gave.
pub enum Got {
    Bytes(usize),
    Nothing,
    End,
}

/// Reads from a stream that does not block. A terminal whose other side is closed says so with EIO.
pub fn read(fd: impl AsFd, buffer: &mut [u8]) -> io::Result<Got> {
    match rustix::io::read(fd, buffer) {
        Ok(0) | Err(rustix::io::Errno::IO) => Ok(Got::End),
        Ok(size) => Ok(Got::Bytes(size)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Got::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// A file that comes in. It appears under its name when it is whole.
pub struct Incoming {
    file: File,
    part: PathBuf,
    path: PathBuf,
}

impl Incoming {
    /// Opens the file; a path that is a directory is refused, missing directories are made.
    pub fn start(path: &Path, mode: u32) -> io::Result<Self> {
        let directory = path.parent().ok_or(io::ErrorKind::IsADirectory)?;
        let mut name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        if path.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        fs::create_dir_all(directory)?;
        let mut salt = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut salt)?;
        name.push(format!(".{:016x}", u64::from_le_bytes(salt)));
        let part = directory.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)?;
        let incoming = Self {
            file,
            part,
            path: path.into(),
        };
        incoming
            .file
            .set_permissions(Permissions::from_mode(mode))?;
        Ok(incoming)
    }

    /// Adds to the file.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives the file its name.
    pub fn finish(self) -> io::Result<()> {
        fs::rename(&self.part, &self.path)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Gone already when it was finished.
        let _ = fs::remove_file(&self.part);
    }
}
