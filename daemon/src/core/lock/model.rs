// SPDX-License-Identifier: MIT OR Apache-2.0

//! The locks against a model that is too simple to be wrong: of each lock a list of requests in
//! their order, of which those are granted that no request before them excludes.

use std::collections::btree_map::Entry;

use proptest::prelude::*;

use super::*;

const SESSIONS: u128 = 6;
/// The session of the node, which keeps locks.
const KEEPER: u128 = 100;
const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    Open(u128),
    Close(u128),
    Acquire(u128, usize, Mode, bool),
    Release(u128, usize),
    Keep(u128, usize),
    Reveal(u128, usize),
    Tick(u64),
    Renew(u128),
}

fn step() -> impl Strategy<Value = Step> {
    let session = 1..=SESSIONS;
    let name = 0..NAMES.len();
    let mode = prop_oneof![Just(Mode::Read), Just(Mode::Write)];
    prop_oneof![
        2 => session.clone().prop_map(Step::Open),
        1 => session.clone().prop_map(Step::Close),
        8 => (session.clone(), name.clone(), mode, prop::bool::weighted(0.8))
            .prop_map(|(s, n, m, w)| Step::Acquire(s, n, m, w)),
        4 => (session.clone(), name.clone()).prop_map(|(s, n)| Step::Release(s, n)),
        1 => name.clone().prop_map(|n| Step::Release(KEEPER, n)),
        4 => (session.clone(), name.clone()).prop_map(|(s, n)| Step::Keep(s, n)),
        3 => (session.clone(), name).prop_map(|(s, n)| Step::Reveal(s, n)),
        1 => (0..MAX_TICK_MS).prop_map(Step::Tick),
        1 => session.prop_map(Step::Renew),
    ]
}

#[derive(Default)]
struct Model {
    /// When each session that is open ends.
    open: BTreeMap<u128, u64>,
    requests: [Vec<(u128, Mode)>; NAMES.len()],
    /// Who would not wait, but for a node to say whether somebody has a lock.
    tries: BTreeSet<(usize, u128)>,
    keeper_has_ended: bool,
    now_ms: u64,
}

impl Model {
    fn is_granted(&self, name: usize, at: usize) -> bool {
        let (_, mode) = self.requests[name][at];
        let before = &self.requests[name][..at];
        before.iter().all(|(_, m)| !m.excludes(mode))
    }

    fn at(&self, name: usize, session: u128) -> Option<usize> {
        let mut requests = self.requests[name].iter();
        requests.position(|(s, _)| *s == session)
    }

    fn waits(&self, session: u128) -> bool {
        (0..NAMES.len()).any(|n| {
            self.at(n, session)
                .is_some_and(|at| !self.is_granted(n, at))
        })
    }

    /// Whether some wait for each other in a circle: whose bonds, drawn out, lead back to them.
    fn has_circle(&self) -> bool {
        let mut reaches = BTreeSet::new();
        for requests in &self.requests {
            for (i, (one, mode)) in requests.iter().enumerate() {
                let before = requests[..i].iter().filter(|(_, m)| m.excludes(*mode));
                reaches.extend(before.map(|(other, _)| (*one, *other)));
            }
        }
        for via in 1..=SESSIONS {
            for from in 1..=SESSIONS {
                for to in 1..=SESSIONS {
                    if reaches.contains(&(from, via)) && reaches.contains(&(via, to)) {
                        reaches.insert((from, to));
                    }
                }
            }
        }
        (1..=SESSIONS).any(|s| reaches.contains(&(s, s)))
    }

    fn drop_session(&mut self, session: u128) {
        self.open.remove(&session);
        for requests in &mut self.requests {
            requests.retain(|(s, _)| *s != session);
        }
        self.keeper_has_ended |= session == KEEPER;
    }

    /// Whether all who have a lock keep it, and nobody waits.
    fn is_kept(&self, name: usize) -> bool {
        self.requests[name].iter().all(|(s, _)| *s == KEEPER)
    }

    fn keep(&mut self, session: u128, name: usize, end_ms: u64) -> Outcome {
        let alone = self.requests[name] == [(session, Mode::Write)];
        if alone && self.open.contains_key(&session) && !self.keeper_has_ended {
            self.open.entry(KEEPER).or_insert(end_ms);
            self.requests[name] = vec![(KEEPER, Mode::Write)];
            return Outcome::Kept { token: 0 };
        }
        self.release(session, name)
    }

    /// What should come of it that `session` has what is kept, those that are refused aside.
    fn reveal(&mut self, session: u128, name: usize) -> Outcome {
        if !self.open.contains_key(&KEEPER) {
            return Outcome::Refused(Refusal::SessionEnded);
        }
        let Some(at) = self.at(name, KEEPER) else {
            return Outcome::Refused(Refusal::NotHeld);
        };
        if self.at(name, session).is_some() {
            return Outcome::Refused(Refusal::Waiting);
        }
        self.requests[name][at].0 = session;
        Outcome::Done
    }

    /// Those of whom `others` know no request any more wanted not to wait, or wait in a circle.
    fn refuse(&mut self, revealed: usize, others: &Locks) {
        for (name, text) in NAMES.iter().enumerate() {
            let lock = others.locks().get(*text).cloned().unwrap_or_default();
            let waits = |s: u128| lock.queue.iter().any(|w| w.session.0 == s);
            let requests = self.requests[name].clone();
            for (at, (session, _)) in requests.iter().enumerate().rev() {
                let tries = name == revealed && self.tries.contains(&(name, *session));
                if self.is_granted(name, at) || waits(*session) {
                    assert!(!tries || self.is_granted(name, at), "{session} still tries");
                    continue;
                }
                assert!(
                    tries || self.has_circle(),
                    "{session} is refused for nothing"
                );
                self.requests[name].remove(at);
            }
        }
    }

    /// What should come of a request for a lock; the number of a grant is not said.
    fn acquire(&mut self, session: u128, name: usize, mode: Mode, wait: bool) -> Outcome {
        if !self.open.contains_key(&session) {
            return Outcome::Refused(Refusal::SessionEnded);
        }
        if let Some(at) = self.at(name, session)
            && self.is_granted(name, at)
        {
            return Outcome::Refused(Refusal::AlreadyHeld);
        }
        if self.waits(session) {
            return Outcome::Refused(Refusal::Waiting);
        }
        self.requests[name].push((session, mode));
        let at = self.requests[name].len() - 1;
        if self.is_granted(name, at) {
            return Outcome::Granted { token: 0 };
        }
        self.tries.remove(&(name, session));
        self.requests[name].pop();
        let is_kept = self.is_kept(name);
        self.requests[name].push((session, mode));
        if !wait && is_kept {
            self.tries.insert((name, session));
            return Outcome::Waiting;
        }
        let refusal = match (wait, self.has_circle()) {
            (false, _) => Refusal::Held,
            (true, true) => Refusal::Deadlock,
            (true, false) => return Outcome::Waiting,
        };
        self.requests[name].pop();
        Outcome::Refused(refusal)
    }

    fn release(&mut self, session: u128, name: usize) -> Outcome {
        if !self.open.contains_key(&session) {
            return Outcome::Refused(Refusal::SessionEnded);
        }
        match self.at(name, session) {
            Some(at) => drop(self.requests[name].remove(at)),
            None => return Outcome::Refused(Refusal::NotHeld),
        }
        Outcome::Done
    }
}

fn opening() -> Opening {
    Opening {
        owner: Owner {
            node: NodeId::new(1).unwrap(),
            since: 1,
            uid: 0,
        },
        parent: None,
        ttl_ms: TTL_MS,
        keeps: false,
    }
}

const TTL_MS: u64 = 2000;

/// Makes a step in both; what came of it in the locks and in the model.
fn make(locks: &mut Locks, model: &mut Model, step: &Step, serial: u64) -> (Outcome, Outcome) {
    let end_ms = model.now_ms + MAX_TICK_MS + TTL_MS;
    let (command, expected) = match *step {
        Step::Open(session) => {
            if let Entry::Vacant(new) = model.open.entry(session) {
                new.insert(end_ms);
                locks.open(Unique(session), opening()).unwrap();
            }
            return (Outcome::Done, Outcome::Done);
        }
        Step::Close(session) => {
            model.drop_session(session);
            let session = Unique(session);
            (Command::Close { session }, Outcome::Done)
        }
        Step::Acquire(session, name, mode, wait) => {
            let expected = model.acquire(session, name, mode, wait);
            let acquire = Command::Acquire {
                session: Unique(session),
                opening: None,
                serial,
                name: NAMES[name].to_owned(),
                mode,
                wait,
            };
            (acquire, expected)
        }
        Step::Release(session, name) => {
            let expected = model.release(session, name);
            let release = Command::Release {
                session: Unique(session),
                serial,
                name: NAMES[name].to_owned(),
            };
            (release, expected)
        }
        Step::Keep(session, name) => {
            let expected = model.keep(session, name, end_ms);
            let keep = Command::Keep {
                session: Unique(session),
                serial,
                name: NAMES[name].to_owned(),
                keeper: Unique(KEEPER),
                opening: Opening {
                    keeps: true,
                    ..opening()
                },
            };
            (keep, expected)
        }
        Step::Reveal(session, name) => {
            // One that ended and was opened again is none that there would be.
            let id = Unique(session);
            if !model.open.contains_key(&session) || locks.ended.contains(&id) {
                return (Outcome::Done, Outcome::Done);
            }
            let expected = model.reveal(session, name);
            let first = locks.token(Unique(KEEPER), NAMES[name]).unwrap_or(0);
            let reveal = Command::Reveal {
                keeper: Unique(KEEPER),
                serial,
                name: NAMES[name].to_owned(),
                session: id,
                opening: opening(),
                token: first + 1,
            };
            (reveal, expected)
        }
        Step::Tick(by_ms) => {
            let from_ms = model.now_ms;
            model.now_ms += by_ms;
            let ended = model.open.iter().filter(|(_, at)| **at <= model.now_ms);
            for session in ended.map(|(s, _)| *s).collect::<Vec<_>>() {
                model.drop_session(session);
            }
            let to_ms = model.now_ms;
            (Command::Tick { from_ms, to_ms }, Outcome::Done)
        }
        Step::Renew(session) => {
            let expected = match model.open.get_mut(&session) {
                Some(at) => {
                    *at = end_ms;
                    Outcome::Done
                }
                None => Outcome::Refused(Refusal::SessionEnded),
            };
            let session = Unique(session);
            (Command::Renew { session }, expected)
        }
    };
    let outcome = locks.apply(&command);
    if let (Step::Reveal(_, name), Outcome::Done) = (step, &outcome) {
        model.refuse(*name, locks);
    }
    let is_again = !matches!(command, Command::Tick { .. });
    let after = locks.clone();
    if is_again && !matches!(outcome, Outcome::Refused(_)) {
        assert_eq!(locks.apply(&command), outcome, "{command:?} again");
        assert_eq!(*locks, after, "{command:?} again");
    }
    (outcome, expected)
}

proptest! {
    #[test]
    fn locks_are_as_the_model(steps in prop::collection::vec(step(), 1..150)) {
        let (mut locks, mut model) = (Locks::default(), Model::default());
        let mut newest: BTreeMap<&str, u64> = BTreeMap::new();
        for (step, serial) in steps.iter().zip(1..) {
            let held = locks.clone();
            let (outcome, expected) = make(&mut locks, &mut model, step, serial);
            match (&outcome, &expected) {
                (Outcome::Granted { .. }, Outcome::Granted { .. })
                | (Outcome::Kept { .. }, Outcome::Kept { .. }) => {}
                _ => prop_assert_eq!(&outcome, &expected, "{:?}", step),
            }
            prop_assert!(!model.has_circle());
            let open: Vec<u128> = locks.sessions().keys().map(|s| s.0).collect();
            prop_assert_eq!(open, model.open.keys().copied().collect::<Vec<_>>());
            for (at, name) in NAMES.iter().enumerate() {
                let lock = locks.locks().get(*name).cloned().unwrap_or_default();
                let requests = &model.requests[at];
                let granted = (0..requests.len()).filter(|i| model.is_granted(at, *i));
                let granted: BTreeSet<u128> = granted.map(|i| requests[i].0).collect();
                let holders: BTreeSet<u128> = lock.holds.keys().map(|s| s.0).collect();
                prop_assert_eq!(&holders, &granted);
                let waiting = requests.iter().filter(|(s, _)| !granted.contains(s));
                let queue = lock.queue.iter().map(|w| (w.session.0, w.mode));
                prop_assert_eq!(queue.collect::<Vec<_>>(), waiting.copied().collect::<Vec<_>>());
                for (session, hold) in &lock.holds {
                    let state = &locks.sessions()[session];
                    prop_assert!(state.held.contains(*name));
                    if held.token(*session, name) == Some(hold.token) {
                        continue;
                    }
                    let before = newest.insert(name, hold.token);
                    prop_assert!(before.is_none_or(|t| t < hold.token) || lock.holds.len() > 1);
                }
            }
        }
    }
}
