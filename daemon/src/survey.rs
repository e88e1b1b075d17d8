// SPDX-License-Identifier: MIT OR Apache-2.0

//! Questions to all nodes at once, and making one answer of theirs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ssi::id::NodeId;
use ssi::uapi::{ProcRecord, STATE_AWAY, STATE_GUEST};
use tokio::task::JoinSet;

use crate::core::health::{Clock, View};
use crate::core::liveness::State;
use crate::msg::{self, Answer, Place, Process, Processes, Request, SeenNode};
use crate::peer;
use crate::roster::Roster;

/// No process has this number or a higher one: the kernel's `PID_MAX_LIMIT`.
const MAX_PIDS: u32 = 1 << 22;

/// What a node answered.
#[derive(Debug)]
pub struct Asked {
    /// The answer.
    pub answer: Answer,
    /// When it was asked, in ns of the time of day.
    pub at_ns: i64,
    /// How long that took.
    pub round_trip: Duration,
}

/// Asks all other nodes the same at once, and waits `within` for each. `None` for those that do not
/// answer; the dead are not asked.
pub async fn ask_all(
    roster: &Roster,
    request: &Request,
    within: Duration,
) -> BTreeMap<NodeId, Option<Asked>> {
    ask_each(roster, |_| request.clone(), within).await
}

/// As [`ask_all`], each node something of its own.
pub async fn ask_each(
    roster: &Roster,
    request: impl Fn(NodeId) -> Request,
    within: Duration,
) -> BTreeMap<NodeId, Option<Asked>> {
    let mut asked = JoinSet::new();
    let mut all = BTreeMap::new();
    for peer in roster.peers() {
        all.insert(peer.node, None);
        if peer.state() == State::Dead {
            continue;
        }
        let request = request(peer.node);
        asked.spawn(async move {
            let (at_ns, start) = (realtime_ns(), Instant::now());
            let answer = peer.ask_once(request, within).await.ok()?;
            let asked = Asked {
                answer,
                at_ns,
                round_trip: start.elapsed(),
            };
            Some((peer.node, asked))
        });
    }
    while let Some(joined) = asked.join_next().await {
        match joined {
            Ok(Some((node, asked))) => drop(all.insert(node, Some(asked))),
            Ok(None) => {}
            Err(e) => tracing::error!("a question failed: {e}"),
        }
    }
    all
}

/// The processes of all nodes, each once, and the nodes that did not answer.
pub fn processes(
    own: Vec<Process>,
    others: BTreeMap<NodeId, Option<Asked>>,
) -> (Vec<Process>, Vec<NodeId>) {
    let (mut rows, mut missing) = (own, Vec::new());
    for (node, asked) in others {
        match asked.map(|a| a.answer) {
            Some(Answer::Processes(p)) => rows.extend(p.processes),
            _ => missing.push(node),
        }
    }
    (merge(rows), missing)
}

/// Whether no honest node answers so: it tells of no more processes than it may, and each has a number that a
/// process can have.
pub fn is_impossible(answer: &Answer) -> bool {
    let Answer::Processes(Processes { processes }) = answer else {
        return false;
    };
    let is_pid = |pid: u32| (1..MAX_PIDS).contains(&pid);
    processes.len() > msg::MAX_PROCESSES || processes.iter().any(|p| !is_pid(p.pid))
}

/// What a node sees, if that is what it answered.
pub fn view(asked: Asked) -> Option<View> {
    let Answer::Seen(seen) = asked.answer else {
        return None;
    };
    let round_trip_ns = nanos(asked.round_trip);
    Some(View {
        clock: Some(Clock::measured(
            asked.at_ns,
            seen.realtime_ns,
            round_trip_ns,
        )),
        states: states(seen.nodes),
    })
}

/// What a peer says of the others, as far as it can be true.
pub fn states(nodes: Vec<SeenNode>) -> BTreeMap<NodeId, String> {
    let known = |s: SeenNode| {
        let state = peer::STATES.into_iter().find(|w| *w == s.state)?;
        Some((msg::node(s.node)?, state.to_owned()))
    };
    nodes.into_iter().filter_map(known).collect()
}

/// A time in ns, or the longest there is.
pub fn nanos(t: Duration) -> i64 {
    i64::try_from(t.as_nanos()).unwrap_or(i64::MAX)
}

/// The time of day in ns.
pub fn realtime_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, nanos)
}

/// A record of the module as others see it.
pub fn from_record(r: &ProcRecord) -> Process {
    let comm = r.comm.split(|b| *b == 0).next().unwrap_or_default();
    let mut row = Process {
        pid: r.pid.get(),
        node: r.node.get().into(),
        home: r.home.get().into(),
        forwarded: r.forwarded.get(),
        threads: r.threads.get().into(),
        missing_pages: r.missing_pages.get(),
        comm: String::from_utf8_lossy(comm).into_owned(),
        ..Process::default()
    };
    row.set_place(match r.state.get() {
        STATE_AWAY => Place::Away,
        STATE_GUEST => Place::Guest,
        _ => Place::Moving,
    });
    row
}

/// One row for each process: the word of the node that runs it counts, with what others add.
fn merge(rows: Vec<Process>) -> Vec<Process> {
    let weight = |p: &Process| match p.place() {
        Place::Guest => 4,
        Place::Home => 3,
        Place::Moving => 2,
        Place::Away => 1,
        Place::Unknown => 0,
    };
    let mut all: BTreeMap<u32, Process> = BTreeMap::new();
    for row in rows {
        let other = match all.remove(&row.pid) {
            None => {
                all.insert(row.pid, row);
                continue;
            }
            Some(other) => other,
        };
        let (mut best, rest) = if weight(&row) > weight(&other) {
            (row, other)
        } else {
            (other, row)
        };
        best.forwarded = best.forwarded.max(rest.forwarded);
        best.missing_pages = best.missing_pages.max(rest.missing_pages);
        best.threads = best.threads.max(rest.threads);
        if best.comm.is_empty() {
            best.comm = rest.comm;
        }
        all.insert(best.pid, best);
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: u32, node: u32, place: Place, forwarded: u64) -> Process {
        let mut p = Process {
            pid,
            node,
            home: 1,
            forwarded,
            ..Process::default()
        };
        p.set_place(place);
        p
    }

    #[test]
    fn so_many_processes_with_numbers_that_can_be() {
        let of = |pids: &[u32]| {
            let rows = pids.iter().map(|pid| row(*pid, 2, Place::Home, 0));
            let processes = rows.collect();
            is_impossible(&Answer::Processes(Processes { processes }))
        };
        assert!(!of(&[]) && !of(&[1, MAX_PIDS - 1]));
        assert!(of(&[0]) && of(&[MAX_PIDS]));
        assert!(!of(&[7; msg::MAX_PROCESSES]) && of(&[7; msg::MAX_PROCESSES + 1]));
    }

    #[test]
    fn a_process_known_to_two_nodes_is_listed_once() {
        let rows = merge(vec![
            row(9, 2, Place::Away, 7),
            row(5, 1, Place::Home, 0),
            row(9, 2, Place::Guest, 3),
            row(7, 3, Place::Away, 1),
        ]);
        assert_eq!(rows.iter().map(|r| r.pid).collect::<Vec<_>>(), [5, 7, 9]);
        assert_eq!((rows[2].place(), rows[2].forwarded), (Place::Guest, 7));
        assert_eq!(rows[1].place(), Place::Away);
    }
}
