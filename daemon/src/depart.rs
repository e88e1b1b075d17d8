// SPDX-License-Identifier: MIT OR Apache-2.0

//! Migrations at their source: carries out what [`crate::core::migrate`] decides.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ssi::id::NodeId;
use ssi::uapi::{FileId, Reason, Report, STATE_AWAY, STATE_GUEST};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::core::liveness::State;
use crate::core::migrate::{Input, Migration, Output, Phase, Place};
use crate::digest::{Digests, Reading};
use crate::failure::{Failure, Refusal};
use crate::kmod::{self, Kmod};
use crate::msg::{self, Answer, Cancel, Migrated, Prepare, Request};
use crate::peer::Peer;
use crate::proc::{self, Mark};

/// The target may read files of any size before it answers.
const PREPARE_IN: Duration = Duration::from_secs(90);
/// A move takes longer only when something is lost.
const MOVE_IN: Duration = Duration::from_secs(120);
/// Longest wait for memory that has yet to come here, before the process can go on.
const WHOLE_IN: Duration = Duration::from_secs(120);
/// Pause before it is looked for again.
const WHOLE_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for the memory to follow.
const FILL_IN: Duration = Duration::from_secs(600);
/// After a last call the module is asked again this often.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A link to a target that is heard is waited for so long: it may be given other keys just now.
const LINK_IN: Duration = Duration::from_secs(5);
/// Pause before the module is asked again whether it has the link.
const LINK_PAUSE: Duration = Duration::from_millis(50);
/// The target is told to forget a migration for so long. After that it gives up by itself.
const CANCEL_IN: Duration = Duration::from_secs(180);
/// Longest wait for its word that it has.
const CANCEL_AGAIN: Duration = Duration::from_secs(10);
/// Pause before it is told again.
const CANCEL_PAUSE: Duration = Duration::from_secs(1);
/// Migrations from here at once that one user wants.
const MAX_OF_USER: usize = 32;
/// Inputs of one migration that wait.
const MAX_INPUTS: usize = 16;
/// Bytes of files named in one request: leaves room for the rest of the message.
const MAX_NAMED_BYTES: usize = msg::MAX_MESSAGE_BYTES - 64 * 1024;

/// What is to be moved where.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The process.
    pub pid: u32,
    /// Its home.
    pub home: NodeId,
    /// This node.
    pub from: NodeId,
    /// The target.
    pub to: NodeId,
    /// Who wants it, if that is one who may only have so many under way.
    pub limited: Option<u32>,
    /// Whether to wait for the memory.
    pub wait: bool,
}

/// The migrations that leave this node.
#[derive(Debug)]
pub struct Departures {
    module: Kmod,
    digests: Arc<Digests>,
    under_way: Mutex<HashMap<u64, UnderWay>>,
}

/// A migration of this node.
#[derive(Debug)]
struct UnderWay {
    limited: Option<u32>,
    inputs: mpsc::Sender<Input>,
}

/// One of them, in the table for as long as this lives.
struct Departure<'a> {
    all: &'a Departures,
    token: u64,
    inputs: mpsc::Receiver<Input>,
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.all.under_way().remove(&self.token);
    }
}

impl Departures {
    /// None yet.
    pub fn new(module: Kmod, digests: Arc<Digests>) -> Self {
        Self {
            module,
            digests,
            under_way: Mutex::default(),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<u64, UnderWay>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The module reported the end of a migration.
    pub fn moved(&self, token: u64, outcome: Result<Report, Refusal>) {
        self.tell(token, Input::Moved(outcome));
    }

    /// The module reported that the memory is at the target.
    pub fn filled(&self, token: u64, report: Report) {
        self.tell(token, Input::Filled(report));
    }

    /// Reports of the module were lost.
    pub fn doubt(&self) {
        for one in self.under_way().values() {
            let _ = one.inputs.try_send(Input::Doubt(false));
        }
    }

    fn tell(&self, token: u64, input: Input) {
        if let Some(one) = self.under_way().get(&token) {
            let _ = one.inputs.try_send(input);
        }
    }

    fn begin(&self, order: Order) -> Result<Departure<'_>, Failure> {
        let token = random().ok_or_else(|| Failure::Unavailable("no random numbers".to_owned()))?;
        let (sender, inputs) = mpsc::channel(MAX_INPUTS);
        let mut all = self.under_way();
        let as_many = |uid| all.values().filter(|one| one.limited == Some(uid)).count();
        if order.limited.is_some_and(|uid| as_many(uid) >= MAX_OF_USER) {
            let text = format!("{MAX_OF_USER} processes are on their way for you: wait for one");
            return Err(Failure::declined("too-many-moves", text));
        }
        let one = UnderWay {
            limited: order.limited,
            inputs: sender,
        };
        all.insert(token, one);
        drop(all);
        Ok(Departure {
            all: self,
            token,
            inputs,
        })
    }

    /// Moves a process that runs here, if it is still the one that was `seen` when somebody asked for it;
    /// `progress` is told every phase.
    ///
    /// # Errors
    /// Why it did not move, or why nobody knows.
    pub async fn migrate(
        &self,
        order: Order,
        seen: Mark,
        target: &Peer,
        progress: &(dyn Fn(Phase) + Send + Sync),
    ) -> Result<Migrated, Failure> {
        let start = Instant::now();
        let mut migration = Migration::new(order.wait);
        let mut departure = self.begin(order)?;
        progress(migration.phase());
        self.wait_whole(order.pid).await;
        let (ids, files) = self.read_files(order.pid).await;
        let mut took = Took {
            digest_us: micros(start),
            ..Took::default()
        };
        let mut moving = start;
        let mut equal = Vec::new();
        let mut files = Some(files);
        let mut deadline = None;

        let mut todo = VecDeque::from(migration.step(Input::Read));
        loop {
            let input = match todo.pop_front() {
                None => {
                    let at = *deadline.get_or_insert_with(|| Instant::now() + MOVE_IN);
                    match tokio::time::timeout_at(at, departure.inputs.recv()).await {
                        Ok(Some(input)) => {
                            if matches!(input, Input::Filled(_)) {
                                took.filled_us = micros(moving);
                            }
                            input
                        }
                        Ok(None) | Err(_) => {
                            deadline = Some(Instant::now() + LOOK_EVERY);
                            Input::Doubt(true)
                        }
                    }
                }
                Some(Output::Prepare) => {
                    let input = self
                        .prepare(
                            order,
                            departure.token,
                            files.take().unwrap_or_default(),
                            target,
                            (&ids, &seen),
                        )
                        .await;
                    took.prepare_us = micros(start).saturating_sub(took.digest_us);
                    match input {
                        Ok(same) => {
                            let (files, token) = (ids.len(), departure.token);
                            tracing::debug!(pid = order.pid, token, files, equal = same.len());
                            equal = same;
                            Input::Prepared(Ok(()))
                        }
                        Err(input) => input,
                    }
                }
                Some(Output::Move) if Mark::now(order.pid).as_ref() != Some(&seen) => {
                    // Reading files and waiting for memory took a while.
                    Input::Begun(Err(Failure::NoProcess(order.pid)))
                }
                Some(Output::Move) => {
                    moving = Instant::now();
                    deadline = Some(moving + MOVE_IN);
                    self.begin_move(order, departure.token, &equal, target)
                        .await
                }
                Some(Output::Look) => Input::Found(self.look(order).await),
                Some(Output::Cancel) => {
                    cancel(target, departure.token).await;
                    continue;
                }
                Some(Output::Progress(phase)) => {
                    if phase == Phase::Filling {
                        deadline = Some(Instant::now() + FILL_IN);
                    }
                    progress(phase);
                    continue;
                }
                Some(Output::Done(report)) => {
                    return Ok(migrated(order, took, &report));
                }
                Some(Output::Fail(failure)) => return Err(failure),
            };
            todo.extend(migration.step(input));
        }
    }

    /// Waits until no page of the process is elsewhere, so that its target need not wait for that.
    /// If it takes too long, the module says so.
    async fn wait_whole(&self, pid: u32) {
        let until = Instant::now() + WHOLE_IN;
        while Instant::now() < until
            && let Ok(Some(record)) = self.module.process(pid).await
            && record.missing_pages.get() != 0
        {
            tokio::time::sleep(WHOLE_PAUSE).await;
        }
    }

    /// Reads the files the process has mapped. What cannot be read is left out: its pages travel.
    async fn read_files(&self, pid: u32) -> (Vec<FileId>, Vec<msg::File>) {
        let job = move |reading: &mut Reading<'_>| {
            let mut room = MAX_NAMED_BYTES;
            let mut all = Vec::new();
            for mapped in proc::mapped_files(pid)
                .unwrap_or_default()
                .into_iter()
                .take(msg::MAX_FILES)
            {
                let link = proc::mapping(pid, &mapped.range);
                let Some(path) = proc::name_of(&link) else {
                    continue;
                };
                let Ok(content) = reading.of(&link) else {
                    continue;
                };
                let named = path.len() + 64;
                if named > room {
                    break;
                }
                room -= named;
                let sha256 = content.sha256.to_vec();
                all.push((
                    mapped.id,
                    msg::File {
                        path,
                        sha256,
                        size: content.size_bytes,
                    },
                ));
            }
            all.into_iter().unzip()
        };
        self.digests.job(job).await.unwrap_or_default()
    }

    /// Asks the target to make ready; returns the files that are equal there.
    async fn prepare(
        &self,
        order: Order,
        token: u64,
        files: Vec<msg::File>,
        target: &Peer,
        (ids, seen): (&[FileId], &Mark),
    ) -> Result<Vec<FileId>, Input> {
        // Last, so that the time on the way is all that the target's view of it lags.
        let clocks = proc::clocks_of(order.pid);
        let request = Prepare {
            token,
            pid: order.pid,
            home: order.home.get().into(),
            comm: proc::comm(order.pid),
            files,
            dirs: proc::working_directory(order.pid).into_iter().collect(),
            monotonic_ns: clocks.monotonic_ns,
            boottime_ns: clocks.boottime_ns,
            uids: seen.acts_as.clone(),
        };
        match target.ask_once(Request::Prepare(request), PREPARE_IN).await {
            Ok(Answer::Prepared(p)) if p.equal.len() == ids.len() => Ok(ids
                .iter()
                .zip(p.equal)
                .filter(|(_, equal)| *equal)
                .map(|(id, _)| *id)
                .collect()),
            Err(f @ Failure::Refused(_)) => Err(Input::Prepared(Err(f))),
            _ => Err(Input::NotPrepared),
        }
    }

    async fn begin_move(&self, order: Order, token: u64, equal: &[FileId], target: &Peer) -> Input {
        let until = Instant::now() + LINK_IN;
        loop {
            match self.module.migrate(order.pid, order.to, token, equal).await {
                Ok(()) => return Input::Begun(Ok(())),
                Err(kmod::Error::Timeout(_)) => return Input::Doubt(false),
                Err(kmod::Error::Refused(r))
                    if r.reason == Reason::NoLink
                        && target.state() == State::Up
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(LINK_PAUSE).await;
                }
                Err(e) => return Input::Begun(Err(failure(order.pid, e))),
            }
        }
    }

    async fn look(&self, order: Order) -> Place {
        let Ok(record) = self.module.process(order.pid).await else {
            return Place::Unknown;
        };
        match record.map(|r| (r.state.get(), r.node.get())) {
            Some((STATE_AWAY, node)) if node == order.to.get() => Place::There,
            Some((STATE_AWAY | STATE_GUEST, _)) => Place::Here,
            Some(_) => Place::Moving,
            None if proc::exists(order.pid) => Place::Here,
            // A guest that left leaves nothing behind.
            None => Place::There,
        }
    }
}

/// Tells the target to forget a migration, as soon as it can be told.
async fn cancel(target: &Peer, token: u64) {
    let cancel = move || Request::Cancel(Cancel { token });
    // Before anything else that is asked of it, a second try of the same move for one.
    let first = target.ask(cancel()).await;
    let target = target.clone();
    tokio::spawn(async move {
        let until = Instant::now() + CANCEL_IN;
        let mut taken = match first {
            Ok(mut answers) => matches!(
                tokio::time::timeout(CANCEL_AGAIN, answers.recv()).await,
                Ok(Some(_))
            ),
            Err(_) => false,
        };
        while !taken && Instant::now() < until {
            tokio::time::sleep(CANCEL_PAUSE).await;
            taken = target.ask_once(cancel(), CANCEL_AGAIN).await.is_ok();
        }
    });
}

/// What the module's answer means for the one who asked.
pub fn failure(pid: u32, e: kmod::Error) -> Failure {
    match e {
        kmod::Error::Refused(r) if r.reason == Reason::NoProcess => Failure::NoProcess(pid),
        kmod::Error::Refused(r) => Failure::Refused(r),
        e if e.errno() == Some(libc::ESRCH) => Failure::NoProcess(pid),
        e => Failure::Unavailable(format!("{:#}", anyhow::Error::from(e))),
    }
}

/// A random number that is not 0.
pub fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes).max(1))
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What the daemon itself measured.
#[derive(Clone, Copy, Debug, Default)]
struct Took {
    digest_us: u64,
    prepare_us: u64,
    /// From when the module was asked, for a report of the module that does not say it.
    filled_us: u64,
}

fn migrated(order: Order, took: Took, r: &Report) -> Migrated {
    let filled_us = match r.filled_us.get() {
        0 => took.filled_us,
        us => us,
    };
    Migrated {
        pid: order.pid,
        from: order.from.get().into(),
        to: order.to.get().into(),
        digest_us: took.digest_us,
        prepare_us: took.prepare_us,
        frozen_us: r.frozen_us.get(),
        sent_us: r.sent_us.get(),
        ready_us: r.ready_us.get(),
        committed_us: r.committed_us.get(),
        filled_us,
        image_bytes: r.image_bytes.get(),
        fetched_bytes: r.fetched_bytes.get(),
        pushed_bytes: r.pushed_bytes.get(),
    }
}
