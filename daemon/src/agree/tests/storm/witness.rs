// SPDX-License-Identifier: MIT OR Apache-2.0

//! What was seen in a storm, and must not be contradicted.
//!
//! Every state of every node is looked at, as it comes of an entry of the log: nodes that have the
//! same entry have the same state, and no state has two owners of anything.

use std::cell::{Cell, RefCell};
use std::panic;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::*;
use crate::core::lock::Mode;

thread_local! {
    static WITNESS: RefCell<Option<Witness>> = const { RefCell::new(None) };
    /// Plants an error: who waits for a lock has it as well.
    static LOCKS_ARE_GIVEN_TWICE: Cell<bool> = const { Cell::new(false) };
    /// Something panicked on this thread. Tokio keeps what panics in a task to itself.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Notes every panic, beside what is done about it anyway.
static WATCHED: LazyLock<()> = LazyLock::new(|| {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        PANICKED.set(true);
        before(info);
    }));
});

/// What was seen.
#[derive(Default)]
pub struct Witness {
    leaders: BTreeMap<u64, NodeId>,
    /// What came of each entry.
    states: BTreeMap<u64, (LogId, Arc<State>)>,
    /// Who got which number of a grant.
    grants: BTreeMap<u64, (Unique, String)>,
    /// Which machine has which number.
    seats: BTreeMap<NodeId, Unique>,
    wrong: Option<String>,
    /// Of all that was seen, in its order.
    trace: u64,
    /// When something was said first.
    begun: Option<Instant>,
}

/// A node leads in a reign, or follows who leads.
pub fn followed(vote: &Vote) {
    let leader = vote.leader_id;
    if let Some(node) = node_of(leader.voted_for).filter(|_| vote.committed) {
        with(|witness| witness.leads(node, leader.term));
    }
}

/// A node has come from an entry to a state. The file that is named is one of its own.
pub fn saw(file: &Path, at: LogId, state: &Arc<State>) {
    with(|witness| witness.see(file, at, state));
}

/// Does what a planted error would.
pub fn twist(state: &mut State) {
    if LOCKS_ARE_GIVEN_TWICE.get() {
        give_twice(state);
    }
}

fn give_twice(state: &mut State) {
    let mut locks = serde_json::to_value(&*state.locks).unwrap();
    let next = locks["tokens"].as_u64().unwrap() + 1;
    let waits = |lock: &&mut Value| !lock["queue"].as_array().unwrap().is_empty();
    let Some(lock) = locks["locks"]
        .as_object_mut()
        .unwrap()
        .values_mut()
        .find(waits)
    else {
        return;
    };
    let waiter = lock["queue"].as_array_mut().unwrap().remove(0);
    let session = waiter["session"].as_str().unwrap();
    lock["holds"][session] = json!({"mode": waiter["mode"], "token": next});
    locks["tokens"] = next.into();
    state.locks = serde_json::from_value(locks).unwrap();
}

/// Begins anew, with no error planted but this.
pub fn begin(planted: Planted) {
    LazyLock::force(&WATCHED);
    PANICKED.set(false);
    WITNESS.set(Some(Witness::default()));
    LOCKS_ARE_GIVEN_TWICE.set(planted == Planted::GivesTwice);
}

/// Sees nothing any more. Returns what was seen.
pub fn end() -> Witness {
    LOCKS_ARE_GIVEN_TWICE.set(false);
    WITNESS.take().unwrap_or_default()
}

/// Asks or tells the witness, if there is one.
pub fn with(f: impl FnOnce(&mut Witness)) {
    WITNESS.with_borrow_mut(|witness| {
        if let Some(witness) = witness {
            f(witness);
        }
    });
}

/// Says what happens, and when, if `STORM_TRACE` is set.
pub fn trace(what: impl FnOnce() -> String) {
    static IS_WANTED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("STORM_TRACE").is_some());
    if *IS_WANTED {
        with(|witness| {
            let begun = *witness.begun.get_or_insert_with(Instant::now);
            eprintln!("{:9.3} {}", begun.elapsed().as_secs_f64(), what());
        });
    }
}

/// Nothing like this may be.
pub fn accuse(why: impl Into<String>) {
    with(|witness| {
        witness.wrong.get_or_insert(why.into());
    });
}

impl Witness {
    /// What must not have been, if it was.
    pub fn verdict() -> Result<(), String> {
        let mut wrong = None;
        with(|witness| wrong.clone_from(&witness.wrong));
        if PANICKED.get() {
            wrong.get_or_insert_with(|| "something panicked".to_owned());
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Of all that was seen.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    fn note(&mut self, what: u64) {
        // FNV-1a, by words.
        self.trace = (self.trace ^ what).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// A node takes part.
    pub fn look(&mut self, node: NodeId, status: &Status) {
        if status.role == Role::Leader {
            self.leads(node, status.term);
        }
    }

    fn leads(&mut self, node: NodeId, term: u64) {
        let leader = *self.leaders.entry(term).or_insert(node);
        if leader != node {
            accuse_in(self, format!("{leader} and {node} lead in term {term}"));
        }
    }

    /// A machine has got a number.
    pub fn seat(&mut self, node: NodeId, machine: Unique) {
        let has = *self.seats.entry(node).or_insert(machine);
        if has != machine {
            accuse_in(self, format!("two machines are {node}"));
        }
    }

    /// A machine is no node any more.
    pub fn leave(&mut self, node: NodeId) {
        self.seats.remove(&node);
    }

    fn see(&mut self, file: &Path, at: LogId, state: &Arc<State>) {
        for byte in file
            .as_os_str()
            .as_encoded_bytes()
            .rsplit(|b| *b == b'/')
            .nth(1)
            .unwrap()
        {
            self.note(u64::from(*byte));
        }
        self.note(at.index);
        self.note(at.leader_id.term);
        if let Some((known, was)) = self.states.get(&at.index) {
            if *known != at || was != state {
                let file = file.display();
                accuse_in(self, format!("{file}: another entry or state at {at}"));
            }
            return;
        }
        let before = self.states.range(..at.index).next_back();
        let before = before.map(|(_, (_, state))| Arc::clone(state));
        self.owners(before.as_deref(), state);
        self.states.insert(at.index, (at, Arc::clone(state)));
    }

    /// Nobody owns what another owns.
    fn owners(&mut self, before: Option<&State>, state: &State) {
        let mut highest = 0;
        let held = before.iter().flat_map(|s| s.locks.locks().values());
        for hold in held.flat_map(|lock| lock.holds.values()) {
            highest = highest.max(hold.token);
        }
        for (name, lock) in state.locks.locks() {
            let writes = lock.holds.values().any(|h| h.mode == Mode::Write);
            if writes && lock.holds.len() > 1 {
                accuse_in(self, format!("{name} has two holders"));
            }
            for (session, hold) in &lock.holds {
                let is = (*session, name.clone());
                let had = before.and_then(|b| b.locks.token(*session, name));
                if had != Some(hold.token) && hold.token <= highest {
                    accuse_in(
                        self,
                        format!("the grant {} of {name} is no later", hold.token),
                    );
                }
                if *self.grants.entry(hold.token).or_insert(is.clone()) != is {
                    accuse_in(self, format!("the grant {} is given twice", hold.token));
                }
            }
        }
        let nonces: BTreeSet<Unique> = state.nodes.values().map(|m| m.nonce).collect();
        if nonces.len() != state.nodes.len() {
            accuse_in(self, "a machine has two numbers".to_owned());
        }
    }
}

fn accuse_in(witness: &mut Witness, why: String) {
    witness.wrong.get_or_insert(why);
}
