// SPDX-License-Identifier: MIT OR Apache-2.0

//! How bad a storm is, and what goes wrong next in it.

use super::Dice;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A node loses power, and comes back.
    Crash,
    /// A wire brings nothing any more in one direction.
    Cut,
    /// Wires are well again, some or all.
    Heal,
    /// A wire takes long in one direction.
    Slow,
    /// A node stands still for a while.
    Pause,
    /// Others vote.
    Voters,
    /// A clock is set.
    Jump,
    /// The disk of a node fails soon.
    Fault,
    /// A node is off, and a bit of its files is another then.
    Flip,
    /// A node seems dead, and may be or not.
    Suspect,
    /// A machine joins.
    Join,
    /// A node is taken out.
    Remove,
}

use Trouble::{Crash, Cut, Fault, Flip, Heal, Join, Jump, Pause, Remove, Slow, Suspect, Voters};

/// How bad each kind is at most, in thousandths of all steps.
const WORST: [(Trouble, u64); 12] = [
    (Crash, 120),
    (Cut, 250),
    (Heal, 200),
    (Slow, 100),
    (Pause, 80),
    (Voters, 80),
    (Jump, 100),
    (Fault, 80),
    (Flip, 40),
    (Suspect, 150),
    (Join, 60),
    (Remove, 40),
];

/// How bad it is.
pub struct Weather {
    /// So many machines are nodes at most.
    pub nodes: u16,
    /// So many are at first.
    pub first: u16,
    /// Longest pause between steps.
    pub pause_ms: u64,
    /// So many answers of a hundred are lost, and so many messages come twice; nothing takes longer.
    pub lost: u64,
    pub twice: u64,
    pub late_ms: u64,
    troubles: Vec<(Trouble, u64)>,
}

impl Weather {
    /// Some weather, in which each kind of trouble is or is not.
    pub fn draw(dice: &mut Dice) -> Self {
        let nodes = 3 + dice.below(7);
        let first = 3 + dice.below(nodes - 2);
        let mut troubles = Vec::new();
        for (trouble, worst) in WORST {
            let bad = dice.below(2 * worst).saturating_sub(worst / 2);
            // What is cut is healed at last.
            let bad = if trouble == Heal { bad.max(50) } else { bad };
            troubles.push((trouble, bad));
        }
        Self {
            nodes: u16::try_from(nodes).unwrap(),
            first: u16::try_from(first).unwrap(),
            pause_ms: 100 + dice.below(3000),
            lost: dice.below(15),
            twice: dice.below(10),
            late_ms: 1 + dice.below(200),
            troubles,
        }
    }

    /// Has nothing else go wrong, and that badly.
    pub fn only(&mut self, troubles: &[Trouble]) {
        self.troubles = [Heal].iter().chain(troubles).map(|t| (*t, 200)).collect();
    }

    /// What goes wrong now, if anything does.
    pub fn next(&self, dice: &mut Dice) -> Option<Trouble> {
        let sum: u64 = self.troubles.iter().map(|(_, bad)| bad).sum();
        let mut what = dice.below(sum.max(1000));
        for (trouble, bad) in &self.troubles {
            match what.checked_sub(*bad) {
                None => return Some(*trouble),
                Some(rest) => what = rest,
            }
        }
        None
    }
}
