// SPDX-License-Identifier: MIT OR Apache-2.0

//! What nodes of a test hear of each other by: wires that are cut, slow, and lose or repeat what they bring.

use tokio::time::sleep_until;

use super::wall::Wall;
use super::*;
use crate::agree::carrier::Asked;

/// A node that stood still notices within this that it may go on.
pub(super) const LOOKS_UP_IN: Duration = Duration::from_millis(100);

/// xorshift64, Marsaglia, 2003.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

pub(super) struct Wires {
    pub(super) nodes: BTreeMap<NodeId, Agreement>,
    /// Nodes nobody reaches and that reach nobody.
    pub(super) cut: BTreeSet<NodeId>,
    /// Nodes that are gone, which nobody finds out: who asks them waits.
    pub(super) silent: BTreeSet<NodeId>,
    /// Nodes that reach each other and nobody else.
    pub(super) apart: BTreeSet<NodeId>,
    /// Wires that bring nothing from the first to the second.
    pub(super) stopped: BTreeSet<(NodeId, NodeId)>,
    /// Wires on which everything takes so much longer, in milliseconds.
    pub(super) slow: BTreeMap<(NodeId, NodeId), u64>,
    /// Nodes that stand still until then: what is for them or from them waits.
    pub(super) paused: BTreeMap<NodeId, Instant>,
    /// So many answers of a hundred are lost.
    pub(super) lost: u64,
    /// So many messages of a hundred come once more, later.
    pub(super) twice: u64,
    /// Nothing takes so long to arrive.
    pub(super) late_ms: u64,
    /// Where the files of a node are, if it lost power once.
    pub(super) dirs: BTreeMap<NodeId, PathBuf>,
    /// What the clocks of nodes show.
    pub(super) walls: BTreeMap<NodeId, Wall>,
    pub(super) snapshots: u64,
    /// Leaders that say that it is agreed on who is accused, and leave it out.
    pub(super) hiding: BTreeSet<NodeId>,
    /// Who saw whom do what no honest node does.
    pub(super) offences: Vec<(NodeId, NodeId, Offence)>,
    /// Who lies in this test.
    pub(super) liars: BTreeSet<NodeId>,
    pub(super) dice: Dice,
}

impl Wires {
    pub(super) fn wall(&mut self, node: NodeId) -> &mut Wall {
        self.walls.entry(node).or_default()
    }
}

/// Waits for a node that stands still. It may go on sooner than was said at first.
pub(super) async fn awake(all: &Mutex<Wires>, node: NodeId) {
    loop {
        let until = all.lock().unwrap().paused.get(&node).copied();
        let now = Instant::now();
        match until.filter(|until| *until > now) {
            Some(until) => sleep_until(until.min(now + LOOKS_UP_IN)).await,
            None => return,
        }
    }
}

#[derive(Clone)]
pub(super) struct Wire {
    pub(super) own: NodeId,
    /// The files of the one who speaks: one that lost power is not heard any more.
    pub(super) dir: PathBuf,
    pub(super) all: Arc<Mutex<Wires>>,
}

impl Carrier for Wire {
    fn ask(&self, to: NodeId, request: Vec<u8>) -> Asked<'_> {
        // What is under way arrives, whether or not anybody still waits for the answer.
        let brought = tokio::spawn(self.clone().bring(to, request));
        Box::pin(async move { brought.await.unwrap_or(Err(NoAnswer::Lost)) })
    }

    fn offended(&self, node: NodeId, offence: Offence) {
        let mut all = self.all.lock().unwrap();
        all.offences.push((self.own, node, offence));
    }
}

impl Wire {
    async fn bring(self, to: NodeId, request: Vec<u8>) -> Result<Vec<u8>, NoAnswer> {
        awake(&self.all, self.own).await;
        let is_silent = {
            let all = self.all.lock().unwrap();
            all.silent.contains(&self.own) || all.silent.contains(&to)
        };
        if is_silent {
            return std::future::pending().await;
        }
        let (node, dir, there, back, lost, again, sent) = {
            let mut all = self.all.lock().unwrap();
            if all.dirs.get(&self.own).is_some_and(|dir| *dir != self.dir) {
                return Err(NoAnswer::NotSent);
            }
            if all.cut.contains(&self.own) || all.cut.contains(&to) {
                return Err(NoAnswer::NotSent);
            }
            if all.apart.contains(&self.own) != all.apart.contains(&to) {
                return Err(NoAnswer::NotSent);
            }
            if request.starts_with(b"{\"snapshot\"") {
                all.snapshots += 1;
            }
            let node = all.nodes.get(&to).cloned().ok_or(NoAnswer::NotSent)?;
            let late_ms = all.late_ms;
            let slow = |way| all.slow.get(&way).map_or(0, |slow| *slow);
            let (slow_there, slow_back) = (slow((self.own, to)), slow((to, self.own)));
            let there = all.dice.below(late_ms + slow_there);
            let back = all.dice.below(late_ms + slow_back);
            let lost = all.dice.below(100) < all.lost;
            let again = all.dice.below(100) < all.twice;
            if all.stopped.contains(&(self.own, to)) {
                return Err(NoAnswer::Lost);
            }
            if all.hiding.contains(&to) && request.starts_with(b"{\"propose\":{\"accuse\"") {
                return Ok(carrier::encode(&Answer::Proposed(Outcome::Done)).unwrap());
            }
            let sent = all.wall(self.own).say();
            (
                node,
                all.dirs.get(&to).cloned(),
                there,
                back,
                lost,
                again,
                sent,
            )
        };
        sleep(Duration::from_millis(there)).await;
        awake(&self.all, to).await;
        self.all.lock().unwrap().wall(to).hear(sent);
        if again {
            let (node, own, request) = (node.clone(), self.own, request.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(3 * back)).await;
                node.serve(own, &request).await;
            });
        }
        let answer = node.serve(self.own, &request).await;
        awake(&self.all, to).await;
        sleep(Duration::from_millis(back)).await;
        awake(&self.all, self.own).await;
        let all = self.all.lock().unwrap();
        let stopped = all.stopped.contains(&(to, self.own));
        // One that lost power meanwhile has said nothing.
        let gone = all.dirs.get(&to) != dir.as_ref();
        if lost || stopped || gone || all.cut.contains(&self.own) || all.cut.contains(&to) {
            return Err(NoAnswer::Lost);
        }
        Ok(answer)
    }
}
