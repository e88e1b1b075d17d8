// SPDX-License-Identifier: MIT OR Apache-2.0

//! What clients see of values and locks, while nodes are stopped, cut off and lose answers, is what
//! they could see of one machine.

use tokio::task::JoinSet;

use super::*;
use crate::agree::keeper::{Keeper, LENDS_TOO_LONG};
use crate::agree::lease::{self, Session, keep_time};
use crate::core::history::{Event, Lock, LockOp, Value, ValueOp, is_linear};
use crate::core::lock::{Mode, Owner, Refusal};

const NAMES: u64 = 3;
const CLIENTS: u64 = 4;
const OPS: u64 = 25;
const HOLDS: u64 = 20;
const LOCKS: u64 = 3;
const TTL: Duration = Duration::from_secs(3);

pub(super) fn owner(node: NodeId) -> Owner {
    Owner {
        node,
        since: node.get().into(),
        uid: 0,
    }
}

/// Half microseconds since `begun`: what ends and what begins in the same microsecond is at once.
fn at(begun: Instant) -> u64 {
    at_time(begun, Instant::now())
}

fn at_time(begun: Instant, time: Instant) -> u64 {
    2 * u64::try_from((time - begun).as_micros()).unwrap()
}

/// What clients did, by name, and a number that nobody had.
pub(super) struct Seen<O> {
    pub(super) events: BTreeMap<u64, Vec<Event<O>>>,
    last: u64,
    /// Locks that nobody else was asked for.
    lent: u64,
}

impl<O> Default for Seen<O> {
    fn default() -> Self {
        Self {
            events: BTreeMap::new(),
            last: 0,
            lent: 0,
        }
    }
}

pub(super) type Keepers = Arc<Mutex<BTreeMap<NodeId, Arc<Keeper>>>>;

/// A number for the session of a node that keeps locks.
fn unique() -> Option<Unique> {
    static LAST: AtomicU64 = AtomicU64::new(1 << 32);
    Some(Unique(LAST.fetch_add(1, Ordering::Relaxed).into()))
}

pub(super) struct Client<O> {
    pub(super) wires: Arc<Mutex<Wires>>,
    pub(super) keepers: Keepers,
    pub(super) begun: Instant,
    pub(super) seen: Arc<Mutex<Seen<O>>>,
    pub(super) dice: Dice,
}

impl<O> Client<O> {
    /// Some node that runs.
    fn node(&mut self) -> Agreement {
        let wires = self.wires.lock().unwrap();
        let all: Vec<&Agreement> = wires.nodes.values().collect();
        let one = usize::try_from(self.dice.below(all.len() as u64)).unwrap();
        all[one].clone()
    }

    fn unique(&self) -> u64 {
        let mut seen = self.seen.lock().unwrap();
        seen.last += 1;
        seen.last
    }

    fn saw(&self, name: u64, call: u64, end: Option<u64>, op: O) {
        let mut seen = self.seen.lock().unwrap();
        let events = seen.events.entry(name).or_default();
        events.push(Event { call, end, op });
    }

    async fn pause(&mut self, below_ms: u64) {
        sleep(Duration::from_millis(self.dice.below(below_ms))).await;
    }
}

impl Client<ValueOp> {
    async fn run(self) {
        self.some(OPS).await;
    }

    /// So many operations.
    pub(super) async fn some(mut self, ops: u64) {
        for _ in 0..ops {
            self.pause(2000).await;
            let (node, name) = (self.node(), self.dice.below(NAMES));
            if self.dice.below(2) == 0 {
                self.get(&node, name).await;
            } else {
                self.put(&node, name).await;
            }
        }
    }

    async fn get(&self, node: &Agreement, name: u64) -> Option<(u64, u64)> {
        let call = at(self.begun);
        // Of a read that failed nothing was seen.
        let state = node.read().await.ok()?;
        let value = state.kv.get(&name.to_string());
        let value = value.map(|v| {
            let number = <[u8; 8]>::try_from(&*v.bytes).unwrap();
            (u64::from_le_bytes(number), v.revision)
        });
        let end = Some(at(self.begun) + 1);
        self.saw(name, call, end, ValueOp::Get(value));
        value
    }

    async fn put(&mut self, node: &Agreement, name: u64) {
        let expected = if self.dice.below(2) == 0 {
            Some(
                self.get(node, name)
                    .await
                    .map_or(0, |(_, revision)| revision),
            )
        } else {
            None
        };
        let value = self.unique();
        let (id, call) = (Unique(value.into()), at(self.begun));
        let bytes = Some(value.to_le_bytes().to_vec());
        let written = node.write(id, name.to_string(), expected, bytes).await;
        let put = |revision| ValueOp::Put {
            value,
            expected,
            revision,
        };
        let end = Some(at(self.begun) + 1);
        match written {
            Ok(kv::Outcome::Done { revision }) => self.saw(name, call, end, put(Some(revision))),
            Ok(kv::Outcome::Refused(kv::Refusal::Differs { revision })) => {
                self.saw(name, call, end, ValueOp::Differs(revision));
            }
            Ok(kv::Outcome::Refused(kv::Refusal::Forgotten)) => {
                self.saw(name, call, None, put(None))
            }
            Ok(other) => panic!("{other:?}"),
            Err(Error::Unavailable) => {}
            Err(_) => self.saw(name, call, None, put(None)),
        }
    }
}

impl Client<LockOp> {
    async fn run(mut self) {
        let own = self.unique();
        for _ in 0..HOLDS {
            self.pause(1000).await;
            // Mostly the same lock on the same node: then it is kept.
            let strays = self.dice.below(4) == 0;
            let name = if strays {
                self.dice.below(LOCKS)
            } else {
                own % LOCKS
            };
            let home = n(u16::try_from(own % 3).unwrap() + 1);
            let home = self.wires.lock().unwrap().nodes.get(&home).cloned();
            let node = home.filter(|_| !strays).unwrap_or_else(|| self.node());
            let session = Unique(self.unique().into());
            // Whatever fails, the session ends by its lease.
            let _ = self.hold(&node, session, name).await;
        }
    }

    async fn hold(&mut self, node: &Agreement, id: Unique, name: u64) -> Result<(), lease::Error> {
        let keeper = Arc::clone(&self.keepers.lock().unwrap()[&node.0.own]);
        let session = Session::new(node, id, owner(node.0.own), None, TTL);
        let mut session = session.kept_by(Arc::clone(&keeper));
        let lock = name.to_string();
        let wait = Duration::from_millis(self.dice.below(20_000));
        let call = at(self.begun);
        let token = session
            .acquire(&lock, Mode::Write, Some(wait), || true)
            .await;
        let token = match token {
            Err(lease::Error::TimedOut) => return session.close().await,
            token => token?,
        };
        let end = Some(at(self.begun) + 1);
        self.saw(name, call, end, LockOp::Acquire { token });
        if keeper.holder(&lock).is_some_and(|(_, lent)| lent == token) {
            self.seen.lock().unwrap().lent += 1;
        }
        // Whatever becomes of the renewal, the lock is given up in the end.
        let renewed = session.renew().await;
        if renewed.is_ok() {
            // Sometimes for longer than the lease.
            self.pause(6000).await;
        }
        let lapses = at_time(self.begun, session.good_until());
        let call = at(self.begun);
        let ends = LockOp::Release { token };
        match session.release(&lock).await {
            Ok(()) => self.saw(name, call, Some(at(self.begun) + 1), ends),
            Err(lease::Error::Refused(Refusal::SessionEnded)) => {
                self.saw(name, lapses, None, ends);
            }
            Err(_) => self.saw(name, call.min(lapses), None, ends),
        }
        session.close().await
    }
}

/// Three nodes with clients, while nodes are stopped, started, and cut off. Returns what was seen.
async fn trouble<O: Send + 'static, F>(seed: u64, run: impl Fn(Client<O>) -> F) -> Seen<O>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (cluster, all) = Cluster::three_members(seed).await;
    let cluster = Arc::new(cluster);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let begun = Instant::now();
    let (mut clocks, keepers) = (JoinSet::new(), Keepers::default());
    let mut attend = |node: Agreement| {
        let keeper = Arc::new(Keeper::new(&node, unique).unwrap());
        let mut all = keepers.lock().unwrap();
        all.insert(node.0.own, Arc::clone(&keeper));
        clocks.spawn(async move { keeper.serve().await });
        clocks.spawn(keep_time(node));
    };
    all.into_iter().for_each(&mut attend);
    let mut clients = JoinSet::new();
    for i in 0..CLIENTS {
        clients.spawn(run(Client {
            wires: Arc::clone(&cluster.wires),
            keepers: Arc::clone(&keepers),
            begun,
            seen: Arc::clone(&seen),
            dice: Dice(seed ^ ((i + 1) << 40)),
        }));
    }
    let mut dice = Dice(seed ^ 0x5555);
    cluster.wires.lock().unwrap().lost = 5;
    while !clients.is_empty() {
        sleep(Duration::from_millis(1000 + dice.below(4000))).await;
        let node = u16::try_from(dice.below(3)).unwrap() + 1;
        match dice.below(6) {
            0 => {
                cluster.stop(node).await;
                sleep(Duration::from_millis(dice.below(8000))).await;
                attend(cluster.start(node).await);
            }
            1 => cluster.cut(&[node]),
            2 => cluster.wires.lock().unwrap().apart = set(&[node]),
            _ => {
                cluster.cut(&[]);
                cluster.wires.lock().unwrap().apart.clear();
            }
        }
        while clients.try_join_next().is_some_and(|ended| ended.is_ok()) {}
    }
    std::mem::take(&mut *seen.lock().unwrap())
}

fn seeds() -> impl Iterator<Item = u64> {
    let n = std::env::var("LINEAR_SEEDS").ok();
    let n = n.and_then(|n| n.parse().ok()).unwrap_or(2);
    (1..=n).map(|seed: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[tokio::test(start_paused = true)]
async fn values_are_as_of_one_machine() {
    for seed in seeds() {
        let seen = trouble(seed, Client::<ValueOp>::run).await;
        for (name, events) in &seen.events {
            let known = events.iter().filter(|e| e.end.is_some()).count();
            assert!(known > 10, "{known} of seed {seed}");
            assert!(is_linear::<Value>(events), "{name} of {seed}: {events:#?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_asks_nobody_is_caught() {
    READS_ARE_STALE.set(true);
    for seed in seeds() {
        let seen = trouble(seed, Client::<ValueOp>::run).await;
        if seen.events.values().any(|e| !is_linear::<Value>(e)) {
            return;
        }
    }
    panic!("what was read was never old");
}

#[tokio::test(start_paused = true)]
async fn locks_are_as_of_one_machine() {
    let mut lent = 0;
    for seed in seeds() {
        let seen = trouble(seed, Client::<LockOp>::run).await;
        lent += seen.lent;
        for (name, events) in &seen.events {
            let granted = |e: &&Event<LockOp>| matches!(e.op, LockOp::Acquire { .. });
            assert!(events.iter().filter(granted).count() > 5, "seed {seed}");
            assert!(is_linear::<Lock>(events), "{name} of {seed}: {events:#?}");
        }
    }
    assert!(lent > 5, "{lent} locks were lent");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_lends_what_it_does_not_keep_any_more_is_caught() {
    LENDS_TOO_LONG.set(true);
    for seed in seeds() {
        let seen = trouble(seed, Client::<LockOp>::run).await;
        if seen.events.values().any(|e| !is_linear::<Lock>(e)) {
            return;
        }
    }
    panic!("nothing was lent for too long");
}

/// Something outside of the cluster that keeps a number, and may look at the token of who reads or writes it.
#[derive(Default)]
struct Store {
    value: u64,
    highest: u64,
    /// Whether it turns away those who come with a lower token than somebody before.
    looks: bool,
    /// Writes that it took, and calls that it turned away.
    written: u64,
    turned_away: u64,
}

impl Store {
    fn may(&mut self, token: u64) -> bool {
        let may = !self.looks || token >= self.highest;
        self.highest = self.highest.max(token);
        self.turned_away += u64::from(!may);
        may
    }

    fn read(&mut self, token: u64) -> Option<u64> {
        self.may(token).then_some(self.value)
    }

    fn write(&mut self, token: u64, value: u64) {
        if self.may(token) {
            self.value = value;
            self.written += 1;
        }
    }
}

impl Client<()> {
    /// Adds one under the lock again and again, until so many have.
    async fn add(mut self, store: Arc<Mutex<Store>>, sections: u64) {
        while store.lock().unwrap().written < sections {
            let node = self.node();
            let keeper = Arc::clone(&self.keepers.lock().unwrap()[&node.0.own]);
            let id = Unique(self.unique().into());
            let session = Session::new(&node, id, owner(node.0.own), None, TTL);
            let mut session = session.kept_by(keeper);
            let acquired = session.acquire("counter", Mode::Write, Some(4 * TTL), || true);
            if let Ok(token) = acquired.await {
                let read = store.lock().unwrap().read(token);
                // It stands still now and then, for longer than its lease.
                let most_ms = if self.dice.below(20) == 0 { 9000 } else { 50 };
                self.pause(most_ms).await;
                if let Some(value) = read {
                    store.lock().unwrap().write(token, value + 1);
                }
                let _ = session.release("counter").await;
            }
            let _ = session.close().await;
        }
    }
}

/// What a store has in the end to which so many added one.
async fn added(looks: bool, sections: u64) -> Store {
    let store = Arc::new(Mutex::new(Store {
        looks,
        ..Store::default()
    }));
    let run = |client: Client<()>| client.add(Arc::clone(&store), sections);
    trouble(17, run).await;
    std::mem::take(&mut *store.lock().unwrap())
}

/// However long who has the lock stands still, and whatever becomes of his node and of those who agree.
#[tokio::test(start_paused = true)]
async fn no_update_is_lost_where_the_token_is_looked_at() {
    let sections = std::env::var("LINEAR_SECTIONS").ok();
    let sections = sections.and_then(|n| n.parse().ok()).unwrap_or(400);
    let store = added(true, sections).await;
    assert_eq!(store.value, store.written);
    assert!(store.turned_away > 0, "nobody came too late");
    println!(
        "{} sections, {} calls turned away",
        store.written, store.turned_away
    );
}

/// The lock alone promises nothing to who stood still.
#[tokio::test(start_paused = true)]
async fn updates_are_lost_where_nobody_looks_at_the_token() {
    let store = added(false, 400).await;
    assert!(store.value < store.written);
}
