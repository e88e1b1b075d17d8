// SPDX-License-Identifier: MIT OR Apache-2.0

//! What goes wrong in a storm, and what people do in it.

use super::*;
use crate::core::voters;

/// How a node goes off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// Its power goes.
    Power,
    /// Its power goes, and a bit of its files is another when it comes.
    Flipped,
    /// Only its daemon ends.
    Daemon,
}

impl Storm {
    /// Some voters, `leader` among them, and the rest: now and then by the rule of the steward, which changes little, else any.
    pub fn choose(&mut self, leader: NodeId) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
        if self.below(2) == 0 {
            let mut nodes: BTreeSet<NodeId> = self.machines.keys().copied().collect();
            nodes.retain(|node| Some(*node) != self.damaged);
            let up: BTreeSet<NodeId> = self.wires().nodes.keys().copied().collect();
            let now = self.node(leader).status().voters;
            let voters = voters::choose(&nodes, &now, leader, |node| up.contains(&node));
            let learners = nodes.difference(&voters).copied().collect();
            return (voters, learners);
        }
        let mut able: Vec<NodeId> = self.machines.keys().copied().collect();
        able.retain(|node| Some(*node) != self.damaged && *node != leader);
        let wanted = match able.len() + 1 {
            0..3 => 1,
            3..5 => 3,
            _ => 5,
        };
        let mut voters = BTreeSet::from([leader]);
        while voters.len() < wanted {
            let which = usize::try_from(self.dice.below(able.len() as u64)).unwrap();
            voters.insert(able.swap_remove(which));
        }
        (voters, able.into_iter().collect())
    }

    /// A node is off. Returns whether it is one of those there are.
    fn turn_off(&mut self, node: NodeId) -> bool {
        witness::trace(|| format!("{node} is off"));
        let Some(life) = self.machines.get_mut(&node) else {
            return false;
        };
        *life += 1;
        let life = *life;
        self.processes.lock().unwrap().off(node);
        let to = self.cluster.dir.path().join(format!("{node}.{life}"));
        let mut wires = self.wires();
        wires.wall(node).restart();
        wires.paused.remove(&node);
        wires.dirs.insert(node, to);
        let gone = wires.nodes.remove(&node);
        // What is left of it is heard by nobody, and writes where nobody reads.
        if let Some(gone) = gone {
            tokio::spawn(async move { gone.stop().await });
        }
        true
    }

    /// A node is off, and comes back with what its disk has.
    pub async fn crash(&mut self, node: NodeId, how: Off) -> Result<(), String> {
        let before = self.dir_of(node);
        if !self.turn_off(node) {
            return Ok(());
        }
        let to = self.dir_of(node);
        let (late, torn) = (self.below(1 << 20), self.below(60));
        match how {
            Off::Daemon => faulty::restart(&before, &to),
            // One that joined later was nothing long ago.
            _ if self.planted == Planted::Forgets && self.early(node).exists() => {
                faulty::lose_power(&self.early(node), &to, 0, 0);
            }
            _ => faulty::lose_power(&before, &to, late, torn),
        }
        let mut flipped = None;
        if how == Off::Flipped {
            let any = self.below(u64::MAX);
            flipped = faulty::flip(&to, any);
        }
        self.pause().await;
        match (self.open(node).await, flipped) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(file)) => Err(format!("{} is damaged, and used", file.display())),
            (Err(Error::Disk(disk::Error::Damaged { .. })), Some(_)) => {
                self.damaged = Some(node);
                Ok(())
            }
            (Err(_), Some(_)) if self.planted == Planted::Overlooks => {
                self.damaged = Some(node);
                Ok(())
            }
            (Err(e), _) => Err(format!("{node} does not start again: {e:?}")),
        }
    }

    /// Has the nodes vote that the storm says, and all others hear.
    pub async fn change_voters(&mut self) {
        if let Some((node, leader)) = self.leader() {
            let (voters, learners) = self.choose(node);
            // Whether it came about will be seen.
            let _ = leader.set_members(voters, learners).await;
        }
    }

    /// A machine joins, if there is room.
    async fn grow(&mut self) -> Result<(), String> {
        if self.machines.len() >= usize::from(self.weather.nodes) || self.count >= 30 {
            return Ok(());
        }
        let (by, machine) = (self.any(), self.machine());
        if let (machine, Some((node, _))) = self.join(by, machine).await {
            self.start(node, machine).await?;
            self.change_voters().await;
        }
        Ok(())
    }

    /// A node is taken out: the one whose files are damaged, or any.
    pub async fn remove(&mut self) -> Result<(), String> {
        let Some((own, leader)) = self.leader() else {
            return Ok(());
        };
        let node = self.damaged.unwrap_or_else(|| self.any());
        if node == own || (self.damaged.is_none() && self.machines.len() <= 3) {
            return Ok(());
        }
        let life = self.machines.remove(&node).unwrap();
        let (mut voters, mut learners) = self.choose(own);
        voters.remove(&node);
        learners.remove(&node);
        let done = leader.set_members(voters, learners).await.is_ok();
        let now_ms = self.wires().wall(own).now_ms();
        self.machines.insert(node, life);
        if done && people::remove(&leader, node, now_ms).await {
            self.turn_off(node);
            self.machines.remove(&node);
            self.damaged = self.damaged.filter(|damaged| *damaged != node);
            witness::with(|witness| witness.leave(node));
        }
        Ok(())
    }

    /// The node that leads says that another is dead, which most often is not true.
    async fn suspect(&mut self) {
        let suspect = self.any();
        if let Some((own, leader)) = self.leader()
            && own != suspect
        {
            let state = Arc::clone(&leader.watch().borrow());
            let since = state.nodes.get(&suspect);
            if let Some(since) = since.and_then(|m| m.presence.current()) {
                let node = suspect;
                let dead = Command::DeclareDead { node, since };
                tokio::spawn(async move { leader.decree(dead).await });
            }
        }
    }

    fn heal(&mut self) {
        let mut wires = self.cluster.wires.lock().unwrap();
        // In another order, and not all.
        let few = wires.dice.below(2) == 0;
        let back: Vec<_> = wires.stopped.iter().rev().copied().collect();
        let count = if few {
            back.len().div_ceil(2)
        } else {
            back.len()
        };
        for wire in back.into_iter().take(count) {
            wires.stopped.remove(&wire);
        }
        if !few {
            wires.slow.clear();
        }
    }

    /// Whether the others go on without any node, for good. Two nodes have one that votes.
    fn can_spare_one(&self) -> bool {
        let wires = self.wires();
        let mut all = wires.nodes.values();
        all.all(|at| at.status().voters.len() >= 3)
    }

    pub async fn meet(&mut self, trouble: Trouble) -> Result<(), String> {
        witness::trace(|| format!("trouble: {trouble:?}"));
        match trouble {
            Trouble::Crash => {
                let node = self.any();
                self.crash(node, Off::Power).await?;
            }
            Trouble::Flip if self.damaged.is_none() && self.can_spare_one() => {
                let node = self.any();
                self.crash(node, Off::Flipped).await?;
            }
            Trouble::Flip if self.damaged.is_none() => {}
            Trouble::Flip | Trouble::Remove => self.remove().await?,
            Trouble::Cut => {
                let wire = (self.any(), self.any());
                self.wires().stopped.insert(wire);
            }
            Trouble::Heal => self.heal(),
            Trouble::Slow => {
                let (wire, ms) = ((self.any(), self.any()), 1 + self.below(20_000));
                self.wires().slow.insert(wire, ms);
            }
            Trouble::Pause => {
                let (node, ms) = (self.any(), self.below(30_000));
                let until = Instant::now() + Duration::from_millis(ms);
                witness::trace(|| format!("{node} stands still for {ms} ms"));
                self.wires().paused.insert(node, until);
            }
            Trouble::Voters => self.change_voters().await,
            Trouble::Jump => {
                // Some milliseconds, or centuries.
                let (node, by) = (self.any(), self.below(45));
                let (by, back) = (self.below(1 << by), self.below(2) == 0);
                let mut wires = self.wires();
                let now_ms = wires.wall(node).now_ms();
                let then = if back {
                    now_ms.saturating_sub(by)
                } else {
                    now_ms.saturating_add(by).min(1 << 46)
                };
                wires.wall(node).set(then);
            }
            Trouble::Fault => {
                let (node, writes) = (self.any(), self.below(10));
                let faults = [
                    faulty::Fault::Full,
                    faulty::Fault::Broken,
                    faulty::Fault::Unsynced,
                ];
                let fault = faults[usize::try_from(self.below(3)).unwrap()];
                faulty::plan(&self.dir_of(node), writes, fault);
            }
            Trouble::Suspect => self.suspect().await,
            Trouble::Join => self.grow().await?,
        }
        Ok(())
    }
}
