// SPDX-License-Identifier: MIT OR Apache-2.0

//! Locks that nodes keep, from acquisition to acquisition.

use super::*;
use crate::agree::keeper::Keeper;
use crate::agree::lease::{self, Session, keep_time};
use crate::core::lock::{self, MAX_HELD, Mode, Owner, Refusal};

const TTL: Duration = Duration::from_secs(10);

/// A node with its keeper.
struct Desk {
    node: Agreement,
    keeper: Arc<Keeper>,
}

fn unique() -> Option<Unique> {
    static LAST: AtomicU64 = AtomicU64::new(1);
    Some(Unique(LAST.fetch_add(1, Ordering::Relaxed).into()))
}

impl Desk {
    fn owner(&self) -> Owner {
        Owner {
            uid: 7,
            ..linear::owner(self.node.0.own)
        }
    }

    fn session(&self) -> Session {
        self.session_for(TTL)
    }

    fn session_for(&self, ttl: Duration) -> Session {
        let session = Session::new(&self.node, unique().unwrap(), self.owner(), None, ttl);
        session.kept_by(Arc::clone(&self.keeper))
    }

    fn entries(&self) -> Option<u64> {
        self.node.status().last_applied
    }
}

async fn desks(seed: u64) -> (Cluster, Vec<Desk>) {
    let (cluster, all) = Cluster::three_members(seed).await;
    let desks = all.into_iter().map(|node| {
        let keeper = Arc::new(Keeper::new(&node, unique).unwrap());
        let serving = Arc::clone(&keeper);
        tokio::spawn(async move { serving.serve().await });
        Desk { node, keeper }
    });
    (cluster, desks.collect())
}

async fn take(session: &mut Session, wait_s: Option<u64>) -> Result<u64, lease::Error> {
    let wait = wait_s.map(Duration::from_secs);
    session.acquire("a", Mode::Write, wait, || true).await
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_lent_without_an_entry() {
    let (_cluster, desks) = desks(21).await;
    let desk = &desks[1];
    let mut first = desk.session();
    let token = take(&mut first, None).await.unwrap();
    first.close().await.unwrap();
    let before = desk.node.read().await.map(|_| desk.entries()).unwrap();
    let mut last = token;
    for _ in 0..3 {
        let mut next = desk.session();
        let token = take(&mut next, None).await.unwrap();
        assert!(token > last);
        last = token;
        let held = desk.keeper.holder("a").unwrap();
        assert_eq!((held.0.uid, held.1), (7, token));
        next.renew().await.unwrap();
        let again = take(&mut next, None).await;
        assert!(matches!(
            again,
            Err(lease::Error::Refused(Refusal::AlreadyHeld))
        ));
        // Given up by its holder, or by the end of its session.
        if token % 2 == 0 {
            next.release("a").await.unwrap();
        }
        next.close().await.unwrap();
        assert!(desk.keeper.holder("a").is_none());
    }
    assert_eq!(
        desk.node.read().await.map(|_| desk.entries()).unwrap(),
        before
    );
    // Somebody else has it at once, and the numbers go on.
    let mut other = desks[2].session();
    assert!(take(&mut other, None).await.unwrap() > last);
    other.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_asks_elsewhere_waits_for_who_has_what_is_kept() {
    let (_cluster, desks) = desks(22).await;
    let mut user = desks[1].session();
    take(&mut user, None).await.unwrap();
    user.release("a").await.unwrap();
    let lent = take(&mut user, None).await.unwrap();
    let mut hasty = desks[2].session();
    let held = take(&mut hasty, None).await;
    assert!(
        matches!(held, Err(lease::Error::Refused(Refusal::Held))),
        "{held:?}"
    );
    // From then on the state says who has it.
    let state = desks[0].node.read().await.unwrap();
    assert_eq!(state.locks.token(user.id(), "a"), Some(lent));
    user.renew().await.unwrap();
    let waiting = tokio::spawn(async move {
        let token = take(&mut hasty, Some(60)).await;
        (token, hasty)
    });
    sleep(Duration::from_secs(3)).await;
    assert!(!waiting.is_finished());
    user.release("a").await.unwrap();
    let (token, hasty) = waiting.await.unwrap();
    assert!(token.unwrap() > lent);
    for session in [user, hasty] {
        session.close().await.unwrap();
    }
}

/// Who waited for a lock was told that a leader was lost, and not to wait on.
#[tokio::test(start_paused = true)]
async fn who_waits_waits_on_while_nothing_is_agreed_on() {
    let (cluster, desks) = desks(26).await;
    let mut user = desks[1].session();
    let first = take(&mut user, None).await.unwrap();
    cluster.cut(&[3]);
    let mut other = desks[2].session();
    let waiting = tokio::spawn(async move { take(&mut other, Some(300)).await });
    sleep(Duration::from_secs(90)).await;
    cluster.cut(&[]);
    for _ in 0..5 {
        user.renew().await.unwrap();
        sleep(TTL / 2).await;
    }
    cluster.cut(&[1, 2]);
    sleep(Duration::from_secs(60)).await;
    cluster.cut(&[]);
    sleep(Duration::from_secs(5)).await;
    user.renew().await.unwrap();
    assert!(!waiting.is_finished());
    cluster.cut(&[1]);
    user.release("a").await.unwrap();
    assert!(waiting.await.unwrap().unwrap() > first);
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_ends_with_the_lease_of_who_has_it() {
    let (_cluster, desks) = desks(23).await;
    let mut user = desks[1].session();
    take(&mut user, None).await.unwrap();
    user.release("a").await.unwrap();
    take(&mut user, None).await.unwrap();
    sleep(TTL).await;
    let mut next = desks[1].session();
    take(&mut next, None).await.unwrap();
    for lost in [user.renew().await, user.release("a").await] {
        let ended = matches!(
            lost,
            Err(lease::Error::Refused(
                Refusal::SessionEnded | Refusal::NotHeld
            ))
        );
        assert!(ended, "{lost:?}");
    }
    assert!(desks[1].keeper.holder("a").is_some());
    next.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_nobody_uses_is_given_up() {
    let (_cluster, desks) = desks(24).await;
    let mut user = desks[1].session();
    take(&mut user, None).await.unwrap();
    user.close().await.unwrap();
    assert!(
        !desks[0]
            .node
            .read()
            .await
            .unwrap()
            .locks
            .sessions()
            .is_empty()
    );
    sleep(Duration::from_secs(15)).await;
    let state = desks[0].node.read().await.unwrap();
    assert!(state.locks.sessions().is_empty() && state.locks.locks().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_others_always_want_is_not_kept_each_time() {
    let (_cluster, desks) = desks(25).await;
    let mut kept = 0;
    for _ in 0..20 {
        for desk in &desks[..2] {
            let mut user = desk.session();
            take(&mut user, Some(10)).await.unwrap();
            user.close().await.unwrap();
            let state = desk.node.read().await.unwrap();
            kept += u32::from(state.locks.locks().contains_key("a"));
        }
    }
    assert!((1..=12).contains(&kept), "kept {kept} times of 40");
}

#[tokio::test(start_paused = true)]
async fn what_is_lent_is_lent_by_the_rules_of_all_locks() {
    let (_cluster, desks) = desks(28).await;
    let desk = &desks[1];
    let mut first = desk.session();
    take(&mut first, None).await.unwrap();
    first.close().await.unwrap();
    let mut short = desk.session_for(Duration::from_millis(999));
    let refused = take(&mut short, None).await;
    assert!(
        matches!(refused, Err(lease::Error::Refused(Refusal::TtlInvalid))),
        "{refused:?}"
    );
    let mut many = desk.session();
    for i in 0..MAX_HELD {
        let name = format!("n{i}");
        many.acquire(&name, Mode::Write, None, || true)
            .await
            .unwrap();
    }
    let refused = take(&mut many, None).await;
    assert!(
        matches!(refused, Err(lease::Error::Refused(Refusal::TooManyLocks))),
        "{refused:?}"
    );
    take(&mut desk.session(), None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_a_node_does_not_know_that_it_keeps_is_given_up() {
    let (_cluster, desks) = desks(29).await;
    let desk = &desks[1];
    // Its session goes on, as another lock is in use.
    let mut used = desk.session();
    take(&mut used, None).await.unwrap();
    used.close().await.unwrap();
    let mut used = desk.session();
    take(&mut used, None).await.unwrap();
    let mut lost = desk.session();
    lost.acquire("b", Mode::Write, None, || true).await.unwrap();
    // As if the answer had been lost.
    let (keeper, opening) = desk.keeper.wants("b", desk.owner()).unwrap();
    let keep = lock::Command::Keep {
        session: lost.id(),
        serial: 99,
        name: "b".to_owned(),
        keeper,
        opening,
    };
    let kept = desk.node.propose(Command::Lock(keep)).await.unwrap();
    assert!(
        matches!(kept, Outcome::Lock(lock::Outcome::Kept { .. })),
        "{kept:?}"
    );
    desk.keeper.settle("b", keeper, None);
    let mut other = desks[2].session();
    let wait = Some(Duration::from_secs(8));
    let got = other.acquire("b", Mode::Write, wait, || true).await;
    assert!(got.is_ok(), "{got:?}");
    used.renew().await.unwrap();
    assert!(desk.keeper.holder("a").is_some());
}

/// One that forgets to renew, and what waits for it, cost nobody else anything.
#[tokio::test(start_paused = true)]
async fn who_let_its_session_end_is_lent_nothing_and_others_keep_theirs() {
    let (_cluster, desks) = desks(31).await;
    for desk in &desks {
        tokio::spawn(keep_time(desk.node.clone()));
    }
    let desk = &desks[1];
    let write = Mode::Write;
    // Both locks are kept by the node.
    for name in ["a", "b"] {
        let mut first = desk.session();
        first.acquire(name, write, None, || true).await.unwrap();
        first.close().await.unwrap();
    }
    let mut good = desk.session();
    let token = take(&mut good, None).await.unwrap();
    let mut late = desk.session_for(Duration::from_secs(3));
    late.acquire("c", write, None, || true).await.unwrap();
    for _ in 0..3 {
        sleep(Duration::from_secs(3)).await;
        good.renew().await.unwrap();
    }
    let state = desk.node.read().await.unwrap();
    assert!(state.locks.session(late.id()).is_none());
    let refused = late.acquire("b", write, None, || true).await;
    assert!(
        matches!(refused, Err(lease::Error::Refused(Refusal::SessionEnded))),
        "{refused:?}"
    );
    let mut other = desks[2].session();
    let wait = Some(Duration::from_secs(20));
    other.acquire("b", write, wait, || true).await.unwrap();
    good.renew().await.unwrap();
    assert_eq!(desk.keeper.holder("a").map(|(_, token)| token), Some(token));
}

/// The first renewal after the state was told who has what is kept counts there.
#[tokio::test(start_paused = true)]
async fn what_was_revealed_is_renewed_in_the_state_at_once() {
    let (_cluster, desks) = desks(32).await;
    for desk in &desks {
        tokio::spawn(keep_time(desk.node.clone()));
    }
    let desk = &desks[1];
    let mut first = desk.session();
    take(&mut first, None).await.unwrap();
    first.close().await.unwrap();
    let mut user = desk.session();
    let token = take(&mut user, None).await.unwrap();
    let mut other = desks[2].session();
    let held = take(&mut other, None).await;
    assert!(
        matches!(held, Err(lease::Error::Refused(Refusal::Held))),
        "{held:?}"
    );
    sleep(TTL * 7 / 10).await;
    user.renew().await.unwrap();
    // Its lease of before is over by now.
    sleep(TTL * 7 / 10).await;
    let state = desk.node.read().await.unwrap();
    assert_eq!(state.locks.token(user.id(), "a"), Some(token));
    let held = take(&mut other, None).await;
    assert!(held.is_err(), "{held:?}");
}
