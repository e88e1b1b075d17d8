// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who asks the cluster of a storm for something: people who let machines in and take nodes out, and
//! those who want locks.

use std::net::SocketAddr;

use super::*;
use crate::agree::lease::Session;
use crate::core::facts::Facts;
use crate::core::hash::Hash;
use crate::core::lock::{Mode, Owner};
use crate::core::state::{Candidate, Presence, Refusal, Why};

/// An hour.
const TOKEN_MS: u64 = 3_600_000;
/// Pause before another try to let a machine in.
const AGAIN: Duration = Duration::from_millis(500);
/// There are so many locks.
const LOCKS: u64 = 3;

fn facts() -> Facts {
    Facts {
        kernel: "7.3.4".to_owned(),
        ..Facts::default()
    }
}

/// Who a machine is, as node `node`.
fn candidate(node: NodeId, machine: Unique) -> Candidate {
    let number = u16::try_from(machine.0).unwrap();
    let [high, low] = number.to_be_bytes();
    Candidate {
        node,
        name: format!("machine-{number}"),
        addr: SocketAddr::from(([10, 0, high, low], 7400)),
        fingerprint: Hash::of(&number.to_be_bytes()),
        ends_ms: None,
        facts: facts(),
        nonce: machine,
    }
}

/// Founds the cluster of a machine, node 1.
pub fn founding(machine: Unique, now_ms: u64) -> Command {
    Command::Found {
        name: "storm".to_owned(),
        id: Unique(1),
        ca: "authority".to_owned(),
        sealed_key: vec![1],
        first: candidate(n(1), machine),
        now_ms,
    }
}

/// Who lets machines in for the node `by`: itself if it votes, else who leads by what it knows.
fn bearer(by: NodeId, at: &Agreement, wires: &Wires) -> Option<Agreement> {
    let status = at.status();
    if status.voters.contains(&by) {
        return Some(at.clone());
    }
    wires.nodes.get(&status.leader?).cloned()
}

/// Lets a machine in, through the node `by`, as [`crate::council`] does. Returns its number and epoch.
pub async fn join(
    by: NodeId,
    at: Agreement,
    wires: Arc<Mutex<Wires>>,
    machine: Unique,
    planted: Planted,
) -> Option<(NodeId, u64)> {
    let now_ms = || wires.lock().unwrap().wall(by).now_ms();
    let secret = Hash::of(b"secret");
    let until = Instant::now() + Duration::from_secs(30);
    for tries in 0.. {
        if Instant::now() >= until {
            break;
        }
        let Ok(state) = at.read().await else {
            // One that has stopped says so at once.
            sleep(AGAIN).await;
            continue;
        };
        if let Some((node, member)) = state.nodes.iter().find(|(_, m)| m.nonce == machine) {
            return Some((*node, member.epoch));
        }
        let id = format!("t{}x{tries}", machine.0);
        let token = Command::AddToken {
            id: id.clone(),
            secret,
            expires_ms: now_ms().saturating_add(TOKEN_MS),
            made_by_uid: 0,
            uses: 1,
            now_ms: now_ms(),
        };
        if !matches!(at.propose(token).await, Ok(Outcome::Done)) {
            sleep(AGAIN).await;
            continue;
        }
        let node = state.next_node()?;
        let join = Command::Join {
            token: id,
            secret,
            candidate: candidate(node, machine),
            generation: 0,
            now_ms: now_ms(),
        };
        let bearer = bearer(by, &at, &wires.lock().unwrap());
        let Some(bearer) = bearer else {
            sleep(AGAIN).await;
            continue;
        };
        match bearer.propose(join).await {
            Ok(Outcome::Joined { node, epoch }) => return Some((node, epoch)),
            Ok(Outcome::Refused(Refusal::NumberTaken)) if planted == Planted::AdmitsAnyhow => {
                return Some((node, 0));
            }
            // The clock was set meanwhile, another was let in first, or who brings it has lost its vote.
            Ok(Outcome::Refused(
                Refusal::NumberTaken
                | Refusal::TokenExpired
                | Refusal::TokenUnknown
                | Refusal::NotYours,
            )) => {}
            Ok(other) => {
                witness::accuse(format!("{machine} does not join: {other:?}"));
                return None;
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
    None
}

/// Takes a node out, by the node that leads.
pub async fn remove(leader: &Agreement, node: NodeId, now_ms: u64) -> bool {
    let Ok(state) = leader.read().await else {
        return false;
    };
    let Some(member) = state.nodes.get(&node) else {
        return true;
    };
    let (since, why) = (member.epoch, Why::Removed);
    let gone = leader.decree(Command::Remove {
        node,
        since,
        why,
        now_ms,
    });
    matches!(gone.await, Ok(Outcome::Gone { .. }))
}

/// Somebody believes that he has a lock.
pub struct Claim {
    name: String,
    session: Unique,
    token: u64,
    node: NodeId,
    /// The life of the node in which he is there.
    dir: PathBuf,
    presence: Presence,
    until: Instant,
}

/// What all believe.
pub type Claims = Arc<Mutex<Vec<Claim>>>;

/// Somebody on a node who wants a lock for a while.
pub struct Client {
    pub node: NodeId,
    pub dir: PathBuf,
    pub at: Agreement,
    pub session: Unique,
    pub claims: Claims,
    pub dice: Dice,
}

impl Client {
    fn forget(&self) {
        let mut claims = self.claims.lock().unwrap();
        claims.retain(|claim| claim.session != self.session);
    }

    /// Has it once.
    pub async fn run(mut self) {
        let state = Arc::clone(&self.at.watch().borrow());
        let Some(member) = state.nodes.get(&self.node) else {
            return;
        };
        let owner = Owner {
            node: self.node,
            since: member.epoch,
            uid: 0,
        };
        let presence = member.presence;
        let ttl = Duration::from_millis(1000 + self.dice.below(8000));
        let name = format!("lock.{}", self.dice.below(LOCKS));
        let mut session = Session::new(&self.at, self.session, owner, None, ttl);
        let wait = Duration::from_millis(self.dice.below(10_000));
        let Ok(token) = session
            .acquire(&name, Mode::Write, Some(wait), || true)
            .await
        else {
            let _ = session.close().await;
            return;
        };
        self.claims.lock().unwrap().push(Claim {
            name: name.clone(),
            session: self.session,
            token,
            node: self.node,
            dir: self.dir.clone(),
            presence,
            until: session.good_until(),
        });
        for _ in 0..self.dice.below(4) {
            sleep(Duration::from_millis(self.dice.below(3000))).await;
            if session.renew().await.is_err() {
                break;
            }
            let mut claims = self.claims.lock().unwrap();
            for claim in claims.iter_mut().filter(|c| c.session == self.session) {
                claim.until = session.good_until();
            }
        }
        self.forget();
        // Some are not heard of again: their lease ends.
        if self.dice.below(4) > 0 {
            let _ = session.release(&name).await;
            let _ = session.close().await;
        }
    }
}

/// Nobody has a lock that somebody else has a right to believe his.
pub fn judge(claims: &Claims, wires: &Wires, state: &State) {
    let now = Instant::now();
    for claim in claims.lock().unwrap().iter() {
        let member = state.nodes.get(&claim.node);
        let is_there = member.is_some_and(|m| m.presence == claim.presence)
            && wires.dirs.get(&claim.node) == Some(&claim.dir)
            && wires.nodes.contains_key(&claim.node);
        let others = state.locks.locks().get(&claim.name);
        let others = others.iter().flat_map(|lock| &lock.holds);
        for (session, hold) in others {
            let later = *session != claim.session && hold.token > claim.token;
            if later && is_there && claim.until > now {
                let (name, token) = (&claim.name, hold.token);
                witness::accuse(format!("{name} is given on as {token} too early"));
            }
        }
    }
}
