// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who seems alive: SWIM ("Scalable Weakly-consistent Infection-style Process Group Membership
//! Protocol", Das, Gupta, Motivala, 2002), by [`foca`].
//!
//! What it tells is a hint. Who is a member, and that one is dead, others decide ([`Swim::list`],
//! [`Swim::unlist`]); until they do, a member that seems down may come back, and does by itself.
//!
//! What is ours around [`foca`]:
//!
//! - Nobody is down because somebody says so. Word that one is down is word that it is suspected; each
//!   member asks the suspect itself ("buddy system" of Lifeguard: it hears at once that it is
//!   suspected, and refutes) and calls it down by a timer of its own.
//! - Besides the members [`foca`] asks at random each watches the next on the ring ([`watch`]).
//! - A node with trouble of its own accuses slowly, and a pause does not count ([`pace`]).
//! - Those who seem down are announced to for ever: a partition heals when the network does.
//! - A packet is looked through first. A member speaks as itself, of those who are listed, in the epoch
//!   in which they are; nothing it says takes more room than there are members.
//!
//! How soon a death is seen, with the defaults and packets that are not lost: a watched member is asked
//! every 500 ms; 1,000 ms after the first question it does not answer, by then asked five times directly
//! and four times through others, it is suspected; 2,000 ms later it is down. That is 3.5 s for those who watch
//! it, and for others as much longer as the gossip takes: they get it from three at a time every
//! 200 ms, so 31 members within three rounds. A packet to and fro that is lost one time in five (10 % each way) makes a false
//! suspicion once in thousands of questions, and that is refuted unless all of some ten further questions
//! are lost.

pub mod config;
pub mod engine;
pub mod hint;
pub mod pace;
pub mod packet;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
pub mod watch;

use std::collections::{BTreeMap, VecDeque};

use foca::{Foca, Header, Message, NoCustomBroadcast, State, Timer};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

pub use self::config::Config;
use self::engine::Engine;
pub use self::hint::{Full, Output, Refused, Seems};
use self::pace::Pace;
pub use self::packet::{Life, MAX_PACKET, Malformed, Member};
use self::packet::{Packet, Wire, Word};
use self::watch::{Act, Times, Watch};
use crate::core::limit::Limit;

/// Most members.
pub const MAX_MEMBERS: usize = 4_096;
/// Others may say that a member has taken so many more turns than we know of. More is a lie.
const MAX_TURNS: u64 = 65_536;
/// How often in a row we believe that somebody takes us for dead, and how soon once more.
const UNDEAD: (u32, u64) = (16, 250);
/// How many each member watches.
const WATCHED: usize = 2;
/// Number of the questions that are not [`foca`]'s.
const NUMBER: u8 = 0;

/// What is known of a member.
#[derive(Clone, Copy, Debug)]
struct Known {
    life: Life,
    incarnation: u16,
    state: State,
    seems: Seems,
}

/// A suspicion that is not refuted yet.
#[derive(Clone, Copy, Debug)]
struct Doubt {
    life: Life,
    incarnation: u16,
    ask_ms: u64,
    down_ms: u64,
}

/// The members as one of them sees them.
pub struct Swim {
    config: Config,
    foca: Foca<Life, Wire, SmallRng, NoCustomBroadcast>,
    engine: Engine,
    pace: Pace,
    rng: SmallRng,
    incarnation: u16,
    said_as: Life,
    started: bool,
    listed: BTreeMap<u16, Known>,
    doubts: BTreeMap<u16, Doubt>,
    watch: Watch,
    announce_ms: u64,
    /// Who seems down and was heard by other means.
    prefer: Option<u16>,
    undead: Limit,
    outputs: VecDeque<Output>,
}

impl Swim {
    /// The member `own`, alone. All that is left to chance comes from `seed`.
    pub fn new(own: Member, seed: u64, config: Config) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let theirs = SmallRng::seed_from_u64(rng.random());
        Self {
            config,
            foca: Foca::new(Life::first(own), config.foca(), theirs, Wire),
            engine: Engine::default(),
            pace: Pace::new(config.late_ms, config.probe_ms),
            rng,
            incarnation: 0,
            said_as: Life::first(own),
            started: false,
            listed: BTreeMap::new(),
            doubts: BTreeMap::new(),
            watch: Watch::default(),
            announce_ms: 0,
            prefer: None,
            undead: Limit::new(UNDEAD.0, UNDEAD.1),
            outputs: VecDeque::new(),
        }
    }

    /// `member` belongs to the cluster: it is asked from now on, and taken to be alive until it does
    /// not answer. One of an older epoch with the same number is forgotten; news of one older than
    /// what is listed is no news. Our own number says in which epoch we are.
    ///
    /// # Errors
    ///
    /// When there are [`MAX_MEMBERS`]. Nothing changed.
    pub fn list(&mut self, now_ms: u64, member: Member) -> Result<(), Full> {
        self.clock(now_ms);
        let own = self.own().member;
        if member.node == own.node {
            if member.epoch > own.epoch {
                let _ = self
                    .foca
                    .change_identity(Life::first(member), &mut self.engine);
                self.settle();
            }
            return Ok(());
        }
        match self.listed.get(&member.node) {
            Some(known) if known.life.member.epoch >= member.epoch => return Ok(()),
            None if self.listed.len() >= MAX_MEMBERS => return Err(Full),
            _ => self.forget(member.node),
        }
        let life = Life::first(member);
        let known = Known {
            life,
            incarnation: 0,
            state: State::Alive,
            seems: Seems::Alive,
        };
        self.listed.insert(member.node, known);
        self.apply(Word::alive(life), false);
        // It is what we just wrote down: no need to look through all.
        self.engine.changed = false;
        self.rewatch();
        self.settle();
        Ok(())
    }

    /// The node is no member any more.
    pub fn unlist(&mut self, now_ms: u64, node: u16) {
        self.clock(now_ms);
        self.forget(node);
        self.rewatch();
        self.settle();
    }

    /// The node was heard by other means.
    pub fn heard(&mut self, now_ms: u64, node: u16) {
        self.clock(now_ms);
        self.lives(node);
        if self.seems(node) == Some(Seems::Down) && self.prefer.replace(node).is_none() {
            self.announce_ms = self.announce_ms.min(self.engine.now_ms);
        }
    }

    /// Bytes that the node `from` sent, which is sure.
    ///
    /// # Errors
    ///
    /// When they are not what an honest member would send now. Nothing changed.
    pub fn take(&mut self, now_ms: u64, from: u16, bytes: &[u8]) -> Result<(), Refused> {
        self.clock(now_ms);
        let Some(mut packet) = self.admit(from, bytes)? else {
            return Ok(());
        };
        let header = &packet.header;
        self.lives(from);
        match header.message {
            Message::Ack(_) => self.pace.answered(self.engine.now_ms),
            Message::ForwardedAck { origin, .. } => {
                self.pace.answered(self.engine.now_ms);
                self.watch.heard(origin.node(), self.times());
            }
            Message::TurnUndead if !self.undead.take(now_ms) => return Ok(()),
            _ => {}
        }
        let known = self.listed.get(&from);
        self.engine.changed |= known.is_none_or(|k| {
            let same = k.life == header.src && k.incarnation >= header.src_incarnation;
            !same || k.state != State::Alive
        });
        packet.words = self.sift(packet.words);
        self.engine.changed |= !packet.words.is_empty();
        // What was read fits.
        let bytes = packet
            .encode()
            .map_err(|source| Refused::Malformed { from, source })?;
        let result = self.foca.handle_data(&bytes, &mut self.engine);
        self.settle();
        result.map_err(|source| Refused::Unfit { from, source })
    }

    /// Time has passed.
    pub fn wake(&mut self, now_ms: u64) {
        self.clock(now_ms);
        while let Some(timer) = self.engine.ring() {
            // It says that a question was cut short, and asks the next.
            let _ = self.foca.handle_timer(timer, &mut self.engine);
            self.settle();
        }
        self.wake_watch();
        self.wake_doubts();
        self.announce();
        self.settle();
    }

    /// When to call [`Swim::wake`] next.
    pub fn due_ms(&self) -> u64 {
        self.pace.outside(self.due())
    }

    /// What is to be done, in this order. To be called after each of the others.
    pub fn outputs(&mut self) -> impl Iterator<Item = Output> + '_ {
        self.outputs.drain(..)
    }

    /// What the node seems to be, if it is listed.
    pub fn seems(&self, node: u16) -> Option<Seems> {
        self.listed.get(&node).map(|k| k.seems)
    }

    /// Who is listed, and what they seem to be.
    pub fn members(&self) -> impl Iterator<Item = (Member, Seems)> + '_ {
        self.listed.values().map(|k| (k.life.member, k.seems))
    }

    /// How long this node did not run when it should have, since it began.
    pub fn late_ms(&self) -> u64 {
        self.pace.stood_ms()
    }

    /// How badly this node itself does, from 0 to 8.
    pub fn trouble(&self) -> u8 {
        self.pace.score()
    }

    fn own(&self) -> Life {
        *self.foca.identity()
    }

    fn times(&self) -> Times {
        let watch = self.config.watch;
        Times {
            silent_ms: self.pace.stretch(watch.silent_ms),
            ..watch
        }
    }

    fn due(&self) -> u64 {
        let doubts = self.doubts.values().map(|d| d.ask_ms.min(d.down_ms));
        let due = [self.engine.due_ms(), self.watch.due_ms(), doubts.min()];
        let due = due.into_iter().flatten().min();
        due.map_or(self.announce_ms, |due| due.min(self.announce_ms))
    }

    fn clock(&mut self, now_ms: u64) {
        let due_ms = self.started.then(|| self.due());
        self.engine.now_ms = self.pace.clock(now_ms, due_ms);
        if !std::mem::replace(&mut self.started, true) {
            self.announce_ms = self.engine.now_ms;
        }
        self.engine.stretch = self.pace.stretch(100);
    }

    /// The packet, if it is one that an honest member may have sent and there is something in it.
    fn admit(&mut self, from: u16, bytes: &[u8]) -> Result<Option<Packet>, Refused> {
        let mut packet =
            Packet::decode(bytes).map_err(|source| Refused::Malformed { from, source })?;
        let (own, header) = (self.own(), &mut packet.header);
        if header.src.node() != from {
            let says = header.src.node();
            return Err(Refused::Sender { from, says });
        }
        if header.dst.member != own.member || header.dst.turn > own.turn {
            return Err(Refused::NotForUs(from));
        }
        let known = self.known(header.src.member)?;
        if let Message::PingReq { target: third, .. }
        | Message::IndirectPing { origin: third, .. }
        | Message::IndirectAck { target: third, .. }
        | Message::ForwardedAck { origin: third, .. } = header.message
        {
            self.known(third.member)?;
        }
        if header.dst.turn < own.turn {
            if header.message == Message::TurnUndead {
                return Ok(None);
            }
            // It has not heard that we took another turn. The answer tells it.
            header.dst = own;
        }
        if header.src.turn < known.life.turn {
            // It began anew and does not know how often it was called down before, or this is late.
            let word = Word::new(known.life, known.incarnation, State::Alive);
            let to = header.src;
            self.say(to, Message::Gossip, vec![word]);
            self.settle();
            return Ok(None);
        }
        Ok(Some(packet))
    }

    fn known(&self, member: Member) -> Result<Known, Refused> {
        let known = self.listed.get(&member.node).copied();
        known
            .filter(|k| k.life.member == member)
            .ok_or(Refused::NoMember(member))
    }

    /// What of `words` is news we may believe.
    fn sift(&mut self, words: Vec<Word>) -> Vec<Word> {
        let own = self.own();
        let (mut news, mut turn) = (BTreeMap::<u16, Word>::new(), own.turn);
        for word in words {
            let (life, incarnation) = (*word.id(), word.incarnation());
            // That one is down each finds out for itself.
            let state = match word.state() {
                State::Alive => State::Alive,
                State::Suspect | State::Down => State::Suspect,
            };
            if life.member == own.member {
                let believable = life.turn <= own.turn.saturating_add(MAX_TURNS);
                if life.turn > own.turn && believable {
                    turn = turn.max(life.turn);
                }
                if life != own || state == State::Alive || incarnation < self.incarnation {
                    continue;
                }
            } else if !self
                .known(life.member)
                .is_ok_and(|k| is_news(&k, life, incarnation, state))
            {
                continue;
            }
            let rank = |w: &Word| (w.id().turn, w.incarnation(), w.state() == State::Suspect);
            let word = Word::new(life, incarnation, state);
            let best = news.entry(life.node()).or_insert_with(|| word.clone());
            if rank(&word) > rank(best) {
                *best = word;
            }
        }
        if turn > own.turn {
            let _ = self
                .foca
                .change_identity(Life { turn, ..own }.after(), &mut self.engine);
        }
        if news.contains_key(&own.node()) {
            self.pace.blamed();
        }
        news.into_values().collect()
    }

    /// It does: whoever suspects it, we heard it just now.
    fn lives(&mut self, node: u16) {
        self.watch.heard(node, self.times());
        if let Some(doubt) = self.doubts.get_mut(&node) {
            let more = self.engine.now_ms + self.pace.stretch(self.config.suspect_ms);
            doubt.down_ms = doubt.down_ms.max(more);
        }
    }

    fn apply(&mut self, word: Word, tell: bool) {
        self.engine.changed = true;
        // Only what cannot be written fails, and a word can.
        let _ = self
            .foca
            .apply_many(std::iter::once(word), tell, &mut self.engine);
    }

    fn forget(&mut self, node: u16) {
        let Some(known) = self.listed.remove(&node) else {
            return;
        };
        self.doubts.remove(&node);
        let word = Word::new(known.life, known.incarnation, State::Down);
        self.apply(word, false);
        let _ = self
            .foca
            .handle_timer(Timer::RemoveDown(known.life), &mut self.engine);
    }

    fn accuse(&mut self, node: u16) {
        let Some(known) = self.listed.get(&node).copied() else {
            return;
        };
        if known.state == State::Alive {
            self.apply(
                Word::new(known.life, known.incarnation, State::Suspect),
                true,
            );
            self.engine.accused.push(known.life);
        }
    }

    fn wake_watch(&mut self) {
        for act in self.watch.wake(self.engine.now_ms, self.times()) {
            match act {
                Act::Ask(node) => self.ask(node, Vec::new()),
                Act::AskAlsoBy(node) => {
                    self.ask(node, Vec::new());
                    self.ask_by_another(node);
                }
                Act::Accuse(node) => self.accuse(node),
            }
        }
    }

    fn ask(&mut self, node: u16, words: Vec<Word>) {
        if let Some(known) = self.listed.get(&node) {
            self.say(known.life, Message::Ping(NUMBER), words);
        }
    }

    fn ask_by_another(&mut self, node: u16) {
        let others = |k: &&Known| k.state == State::Alive && k.life.node() != node;
        let by = self.pick(others);
        if let (Some(by), Some(known)) = (by, self.listed.get(&node)) {
            let message = Message::PingReq {
                target: known.life,
                probe_number: NUMBER,
            };
            self.say(by, message, Vec::new());
        }
    }

    fn pick(&mut self, fits: impl Fn(&&Known) -> bool) -> Option<Life> {
        let count = self.listed.values().filter(&fits).count();
        if count == 0 {
            return None;
        }
        let i = self.rng.random_range(0..count);
        self.listed.values().filter(&fits).nth(i).map(|k| k.life)
    }

    fn wake_doubts(&mut self) {
        let now_ms = self.engine.now_ms;
        let due = |d: &Doubt| d.ask_ms.min(d.down_ms) <= now_ms;
        let due: Vec<u16> = self
            .doubts
            .iter()
            .filter_map(|(node, d)| due(d).then_some(*node))
            .collect();
        for node in due {
            let Some(doubt) = self.doubts.get_mut(&node) else {
                continue;
            };
            let (life, incarnation) = (doubt.life, doubt.incarnation);
            if doubt.down_ms <= now_ms {
                self.doubts.remove(&node);
                self.apply(Word::new(life, incarnation, State::Down), true);
            } else {
                doubt.ask_ms = now_ms + self.config.watch.hurry_ms.max(1);
                self.ask(node, vec![Word::new(life, incarnation, State::Suspect)]);
            }
        }
    }

    /// Announces us to one of those who seem down.
    fn announce(&mut self) {
        let now_ms = self.engine.now_ms;
        if self.announce_ms > now_ms {
            return;
        }
        let pause = self.config.announce_ms.max(2);
        self.announce_ms = now_ms + self.rng.random_range(pause / 2..=pause + pause / 2);
        let preferred = self.prefer.take().and_then(|n| self.listed.get(&n));
        let preferred = preferred.filter(|k| k.state == State::Down).map(|k| k.life);
        let to = preferred.or_else(|| self.pick(|k| k.state == State::Down));
        if let Some(to) = to {
            self.say(to, Message::Announce, Vec::new());
        }
    }

    /// A packet of our own making.
    fn say(&mut self, to: Life, message: Message<Life>, words: Vec<Word>) {
        let header = Header {
            src: self.own(),
            src_incarnation: self.incarnation,
            dst: to,
            message,
        };
        if let Ok(bytes) = (Packet { header, words }).encode() {
            self.engine.send(to.node(), bytes);
        }
    }

    /// Takes over what has changed, and hands out what is to be sent.
    fn settle(&mut self) {
        if std::mem::take(&mut self.engine.changed) {
            self.compare();
        }
        let own = self.own();
        if std::mem::replace(&mut self.said_as, own) != own {
            self.incarnation = 0;
        }
        for (to, bytes) in self.engine.take_sends() {
            if let Some(incarnation) = packet::incarnation(&bytes) {
                self.incarnation = incarnation;
            }
            self.outputs.push_back(Output::Send { to, bytes });
        }
    }

    fn compare(&mut self) {
        let accused = std::mem::take(&mut self.engine.accused);
        let now_ms = self.engine.now_ms;
        let mut alive_changed = false;
        for word in self.foca.iter_membership_state() {
            let (life, incarnation, state) = (*word.id(), word.incarnation(), word.state());
            let Some(known) = self.listed.get_mut(&life.node()) else {
                continue;
            };
            if (known.life, known.incarnation, known.state) == (life, incarnation, state) {
                continue;
            }
            alive_changed |= (known.state == State::Alive) != (state == State::Alive);
            (known.life, known.incarnation, known.state) = (life, incarnation, state);
            let seems = match state {
                State::Alive => Seems::Alive,
                State::Suspect => Seems::Suspect,
                State::Down => Seems::Down,
            };
            if state == State::Suspect {
                let ours = accused.contains(&life);
                let suspect_ms = self.pace.stretch(self.config.suspect_ms);
                // Word travels faster than some questions: others wait whether it is refuted.
                let first_ms = if ours { 0 } else { suspect_ms / 4 };
                let doubt = Doubt {
                    life,
                    incarnation,
                    ask_ms: now_ms + first_ms,
                    down_ms: now_ms + suspect_ms,
                };
                self.doubts.insert(life.node(), doubt);
                if ours {
                    // What this one does to us counts for the next.
                    self.pace.unanswered();
                }
            } else {
                self.doubts.remove(&life.node());
            }
            if std::mem::replace(&mut known.seems, seems) != seems {
                let member = life.member;
                self.outputs.push_back(Output::Event { member, seems });
            }
        }
        if alive_changed {
            self.rewatch();
        }
    }

    /// Chooses whom to watch: the next who seem alive.
    fn rewatch(&mut self) {
        let own = self.own().node();
        let after = self.listed.range(own..).chain(self.listed.range(..own));
        let next: Vec<u16> = after
            .filter(|(_, k)| k.state == State::Alive)
            .map(|(node, _)| *node)
            .take(WATCHED)
            .collect();
        let first_ms = self.rng.random_range(0..=self.config.watch.ask_ms);
        self.watch.set(&next, self.engine.now_ms, first_ms);
    }
}

/// Whether word of one of whom `known` is known is news, and can be true.
fn is_news(known: &Known, life: Life, incarnation: u16, state: State) -> bool {
    if life.turn != known.life.turn {
        let turns = life.turn.saturating_sub(known.life.turn);
        return turns > 0 && turns <= MAX_TURNS;
    }
    match (known.state, state) {
        (State::Down, _) => false,
        (State::Alive, State::Suspect | State::Down) => incarnation >= known.incarnation,
        _ => incarnation > known.incarnation,
    }
}
