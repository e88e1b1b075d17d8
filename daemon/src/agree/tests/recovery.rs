// SPDX-License-Identifier: MIT OR Apache-2.0

//! Two of three voters are lost for good.

use super::*;
use crate::agree::recovery::Estate;
use crate::core::state::Why;

/// Whoever is left knows all within this.
const WELL_IN: Duration = Duration::from_secs(60);

/// Those of five nodes that have lost two voters, and what each knew.
struct Left {
    cluster: Cluster,
    nodes: BTreeMap<NodeId, Agreement>,
    lost: BTreeSet<NodeId>,
    known: Vec<Arc<State>>,
}

impl Left {
    async fn new(seed: u64) -> Self {
        let cluster = Cluster::new(seed);
        let mut all = Vec::new();
        for node in 1..=5 {
            all.push(cluster.start(node).await);
        }
        all[0].found().await.unwrap();
        let (voters, learners) = (set(&[1, 2, 3]), set(&[4, 5]));
        all[0].set_members(voters, learners).await.unwrap();
        for command in formation().into_iter().chain([join(4), join(5)]) {
            let outcome = all[0].propose(command).await.unwrap();
            assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        }
        let mut dice = Dice(seed);
        let mut node = || u16::try_from(1 + dice.below(5)).unwrap();
        for i in 0..43 {
            match i % 5 {
                // Also at last: what they miss then they never hear of those who vote.
                0 => cluster.cut(&[node(), node()]),
                3 => cluster.cut(&[]),
                _ => {}
            }
            // Whether it came about is to be seen.
            let by = all[usize::from(node() - 1)].clone();
            let name = format!("k{i}");
            tokio::spawn(async move { by.propose(put(&name, &name)).await });
            sleep(Duration::from_millis(u64::from(node()) * 500)).await;
        }
        let mut lost = set(&[1, 2, 3]);
        lost.remove(&n(1 + node() % 3));
        for node in &lost {
            cluster.stop(node.get()).await;
        }
        cluster.cut(&[]);
        sleep(WELL_IN).await;
        let nodes = cluster.wires.lock().unwrap().nodes.clone();
        let known = nodes.values().map(|at| Arc::clone(&at.watch().borrow()));
        Self {
            known: known.collect(),
            cluster,
            nodes,
            lost,
        }
    }

    fn others(&self, but: NodeId) -> BTreeSet<NodeId> {
        self.nodes.keys().copied().filter(|n| *n != but).collect()
    }

    fn gone(&self) -> Vec<Command> {
        let gone = self.lost.iter().map(|node| Command::Remove {
            node: *node,
            since: node.get().into(),
            why: Why::Removed,
            now_ms: 2,
        });
        gone.collect()
    }

    /// Goes on with this one, and looks whether everybody knows all that anybody knew.
    async fn go_on(&self, node: NodeId) {
        self.cluster.stop(node.get()).await;
        let estate = Estate::open(&self.cluster.dir_of(node.get()), node).unwrap();
        estate.take_over(self.gone()).unwrap();
        let first = self.cluster.start(node.get()).await;
        first.propose(put("last", "last")).await.unwrap();
        for other in self.others(node) {
            let mut states = self.nodes[&other].watch();
            let knows = states.wait_for(|state| state.kv.get("last").is_some());
            timeout(WELL_IN, knows)
                .await
                .expect("it hears all")
                .unwrap();
        }
        let all = self.nodes.keys().copied().collect();
        first.set_members(all, set(&[])).await.unwrap();
        let state = first.read().await.unwrap();
        assert!(state.nodes.keys().eq(self.nodes.keys()));
        for other in self.others(node) {
            let known = self.nodes[&other].read().await.unwrap();
            assert_eq!(known, state);
        }
        for known in &self.known {
            for (name, value) in known.kv.list("") {
                let now = state.kv.get(name).map(|v| v.revision);
                assert_eq!(now, Some(value.revision), "{name}");
            }
        }
        self.cluster.assert_honest();
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_left_goes_on_with_all_that_any_of_them_knew() {
    let mut behind = 0;
    for seed in 1..=8 {
        let left = Left::new(seed * 0x9e37_79b9).await;
        let mut able = None;
        for (node, at) in &left.nodes {
            assert!(matches!(
                at.propose(put("late", "late")).await,
                Err(Error::Unavailable | Error::Unknown)
            ));
            match at.ahead(&left.others(*node)).await {
                None => able = Some(*node),
                Some(ahead) => {
                    println!("seed {seed}: {ahead} is ahead of {node}");
                    behind += 1;
                }
            }
        }
        left.go_on(able.expect("one of them has all")).await;
    }
    // Or it does not matter who goes on.
    assert!(behind > 0);
}

#[tokio::test(start_paused = true)]
async fn all_is_done_or_nothing() {
    let left = Left::new(7).await;
    let (node, at) = left.nodes.first_key_value().unwrap();
    assert!(matches!(
        Estate::open(&left.cluster.dir_of(node.get()), *node),
        Err(Error::InUse(_))
    ));
    let before = at.status();
    left.cluster.stop(node.get()).await;
    let dir = left.cluster.dir_of(node.get());
    let mut changes = left.gone();
    changes.push(Command::Uncordon { node: n(9) });
    let estate = Estate::open(&dir, *node).unwrap();
    assert!(matches!(estate.take_over(changes), Err(Error::Refused(_))));
    let again = left.cluster.start(node.get()).await;
    sleep(WELL_IN).await;
    let again = again.status();
    assert_eq!(
        (again.voters, again.learners),
        (before.voters, before.learners)
    );
}
