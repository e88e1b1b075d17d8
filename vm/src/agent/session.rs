// SPDX-License-Identifier: MIT OR Apache-2.0

//! One port's sessions, one after another: frames in, a job or a file, frames out.
//!
//! All queues are bounded, and a full one stops what would fill it: a slow reader at either end slows the other
//! end down and nothing is lost.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

use crate::job::{Got, Incoming, Job, not_started, read};
use crate::port::Port;
use crate::proto::{FromHost, GUEST_MAX, Parser, Request, STDIN_MAX, ToHost, put};

/// Bytes on their way to the host before a command's output is left unread.
const OUT_MAX: usize = 128 << 10;
/// Longest request: what Linux takes as arguments, about.
const REQUEST_MAX: usize = 2 << 20;

/// How long a terminal must be silent after its command has ended for its last words to be over, if processes
/// the command left behind still hold it.
const SILENCE: Duration = Duration::from_millis(50);
/// And how long at most, if they never are.
const LAST_WORDS: Duration = Duration::from_secs(1);

enum Activity {
    Nothing,
    /// A request is coming in, and perhaps the size of the client's terminal.
    Asking(Vec<u8>, (u16, u16)),
    Job(Job, Stdin),
    File(Incoming),
}

#[derive(Default)]
struct Stdin {
    queue: VecDeque<u8>,
    end: bool,
}

struct Session {
    activity: Activity,
    out: VecDeque<u8>,
}

/// Serves a port for ever.
pub fn serve(port: &Port) {
    let mut parser = Parser::default();
    let mut session = Session {
        activity: Activity::Nothing,
        out: VecDeque::new(),
    };
    let mut buffer = vec![0; GUEST_MAX];
    loop {
        if session.wait(port) {
            session.abandon();
        }
        if let Some(size) = port.read(&mut buffer) {
            parser.feed(&buffer[..size]);
            while let Some(frame) = parser.next() {
                session.take(frame);
            }
        }
        session.work(&mut buffer);
        let sent = port.write(session.out.as_slices().0);
        session.out.drain(..sent);
    }
}

impl Session {
    /// Waits until there is something to do. Returns whether a client has gone before its session was over.
    fn wait(&self, port: &Port) -> bool {
        let mut at_port = PollFlags::IN;
        at_port.set(PollFlags::OUT, !self.out.is_empty());
        if matches!(self.activity, Activity::Nothing) && self.out.is_empty() {
            port.wait();
            return false;
        }
        let mut fds = vec![PollFd::new(port, at_port)];
        if let Activity::Job(job, stdin) = &self.activity {
            fds.push(PollFd::new(&job.ended, PollFlags::IN));
            if let Some(fd) = job.stdin.as_ref().filter(|_| !stdin.queue.is_empty()) {
                fds.push(PollFd::new(fd, PollFlags::OUT));
            }
            if self.out.len() < OUT_MAX {
                fds.extend(
                    job.streams
                        .iter()
                        .flatten()
                        .map(|fd| PollFd::new(fd, PollFlags::IN)),
                );
            }
        }
        poll(&mut fds, None).is_ok()
            && fds[0].revents().contains(PollFlags::HUP)
            && port.has_lost_its_host()
    }

    fn abandon(&mut self) {
        self.out.clear();
        if let Activity::Job(job, _) = std::mem::replace(&mut self.activity, Activity::Nothing) {
            job.hang_up();
        }
    }

    fn finish(&mut self, message: &str, status: u8) {
        self.put(ToHost::Stderr, message.as_bytes());
        self.put(ToHost::Exit, &[status]);
        self.activity = Activity::Nothing;
    }

    fn taken(&mut self, size: usize) {
        let size = u32::try_from(size).expect("no more than STDIN_MAX is ever under way");
        self.put(ToHost::Taken, &size.to_le_bytes());
    }

    fn put(&mut self, kind: ToHost, payload: &[u8]) {
        let mut frames = Vec::with_capacity(payload.len() + 3);
        put(&mut frames, kind, payload);
        self.out.extend(frames);
    }

    fn take(&mut self, frame: FromHost) {
        match (frame, &mut self.activity) {
            (FromHost::Hello(nonce), _) => {
                self.abandon();
                self.out.extend(nonce);
                self.activity = Activity::Asking(Vec::new(), (0, 0));
            }
            (FromHost::Request(bytes), Activity::Asking(request, _)) => {
                if request.len() + bytes.len() > REQUEST_MAX {
                    self.finish("the command line is too long\n", 126);
                } else {
                    request.extend(bytes);
                }
            }
            (FromHost::Window { rows, columns }, Activity::Asking(_, size)) => {
                *size = (rows, columns)
            }
            (FromHost::Window { rows, columns }, Activity::Job(job, _)) => {
                job.resize(rows, columns)
            }
            (FromHost::Run, Activity::Asking(request, size)) => {
                let (request, size) = (Request::decode(request), *size);
                self.run(request, size);
            }
            (FromHost::Stdin(bytes), Activity::Job(job, stdin)) => {
                if stdin.queue.len() + bytes.len() > STDIN_MAX {
                    // No client of ours.
                    self.abandon();
                } else if job.stdin.is_some() && !stdin.end {
                    stdin.queue.extend(bytes);
                } else {
                    self.taken(bytes.len());
                }
            }
            (FromHost::StdinEnd, Activity::Job(job, stdin)) => {
                if job.terminal.is_some() {
                    // A terminal does not end; this is what a user would type.
                    stdin.queue.push_back(4);
                } else {
                    stdin.end = true;
                }
            }
            (FromHost::Stdin(bytes), Activity::File(file)) => match file.write(&bytes) {
                Ok(()) => self.taken(bytes.len()),
                Err(error) => self.finish(&format!("{error}\n"), 1),
            },
            (FromHost::StdinEnd, Activity::File(_)) => {
                let Activity::File(file) = std::mem::replace(&mut self.activity, Activity::Nothing)
                else {
                    return;
                };
                match file.finish() {
                    Ok(()) => self.finish("", 0),
                    Err(error) => self.finish(&format!("{error}\n"), 1),
                }
            }
            // The rest of a session that is over, or nonsense.
            _ => (),
        }
    }

    fn run(&mut self, request: Option<Request>, size: (u16, u16)) {
        match request {
            Some(Request::Exec { term, words }) => {
                match Job::start(term.as_deref(), &words, size) {
                    Ok(job) => self.activity = Activity::Job(job, Stdin::default()),
                    Err(error) => {
                        let (message, status) = not_started(&words[0], &error);
                        self.finish(&message, status);
                    }
                }
            }
            Some(Request::Push { mode, path }) => match Incoming::start(&path, mode) {
                Ok(file) => self.activity = Activity::File(file),
                Err(error) => self.finish(&format!("{}: {error}\n", path.display()), 1),
            },
            None => self.finish("the agent does not understand the request\n", 126),
        }
    }

    /// Moves a job's bytes, as far as that does not block.
    fn work(&mut self, buffer: &mut [u8]) {
        let Activity::Job(job, stdin) = &mut self.activity else {
            return;
        };
        let mut taken = 0;
        if let Some(fd) = job.stdin.as_ref().filter(|_| !stdin.queue.is_empty()) {
            match rustix::io::write(fd, stdin.queue.as_slices().0) {
                Ok(size) => {
                    stdin.queue.drain(..size);
                    taken = size;
                }
                Err(Errno::AGAIN | Errno::INTR) => (),
                // Nobody reads it any more.
                Err(_) => {
                    taken = stdin.queue.len();
                    stdin.queue.clear();
                    stdin.end = true;
                }
            }
        }
        if stdin.end && stdin.queue.is_empty() {
            job.stdin = None;
        }
        // Asked first: what the command wrote before it ended is then in the streams.
        let status = ready(&job.ended, Duration::ZERO).then(|| job.status());
        if taken > 0 {
            self.taken(taken);
        }
        if let Some(status) = status {
            self.last_words(buffer);
            self.put(ToHost::Exit, &[status]);
            if let Activity::Job(job, _) = std::mem::replace(&mut self.activity, Activity::Nothing)
            {
                job.let_go();
            }
        } else if self.out.len() < OUT_MAX {
            for index in 0..2 {
                self.pass(index, buffer);
            }
        }
    }

    /// Passes on what stream `index` has, at most a buffer of it. Returns how much that was.
    fn pass(&mut self, index: usize, buffer: &mut [u8]) -> usize {
        let Activity::Job(job, _) = &mut self.activity else {
            return 0;
        };
        let kind = if index == 0 {
            ToHost::Stdout
        } else {
            ToHost::Stderr
        };
        let stream = &mut job.streams[index];
        let Some(fd) = &*stream else { return 0 };
        match read(fd, buffer) {
            Ok(Got::Bytes(size)) => {
                self.put(kind, &buffer[..size]);
                return size;
            }
            Ok(Got::Nothing) => (),
            Ok(Got::End) | Err(_) => *stream = None,
        }
        0
    }

    /// Passes on what the command wrote before it ended, and not what its children go on writing.
    fn last_words(&mut self, buffer: &mut [u8]) {
        let Activity::Job(job, _) = &self.activity else {
            return;
        };
        if job.terminal.is_some() {
            // A terminal hands bytes over in its own time, and cannot say how many are on their way.
            let limit = Instant::now() + LAST_WORDS;
            while let Activity::Job(job, _) = &self.activity
                && let Some(fd) = &job.streams[0]
                && Instant::now() < limit
                && ready(fd, SILENCE)
            {
                self.pass(0, buffer);
            }
            return;
        }
        let sizes = job.streams.each_ref().map(|stream| {
            let size = stream
                .as_ref()
                .and_then(|fd| ioctl_fionread(fd).ok())
                .unwrap_or(0);
            usize::try_from(size).unwrap_or(0)
        });
        for (index, mut left) in sizes.into_iter().enumerate() {
            while left > 0 {
                let part = left.min(buffer.len());
                let size = self.pass(index, &mut buffer[..part]);
                if size == 0 {
                    break;
                }
                left -= size;
            }
        }
    }
}

/// Whether a file can be read, or has ended, within a time.
fn ready(fd: &std::os::fd::OwnedFd, time: Duration) -> bool {
    let time = Timespec {
        tv_sec: 0,
        tv_nsec: time.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&time)), Ok(1..))
}
