// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a node never does that keeps to the rules, and that another can see.
//!
//! Nothing counts that an honest node may do because it is slow, late, paused, cut off, restarted, or
//! has only just lost the lead: such a thing may be refused, which hurts nobody, but it is no offence.
//! Nor does a word that is not known here, which a later version may have. Who speaks is sure in each
//! case: the connection proves it, and TLS shows whether somebody on the way changed what was said.
//! Each kind says below why no honest node can commit it.

use serde::{Deserialize, Serialize};

/// What a node did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offence {
    /// It sent bytes that are no message. What a node sends it has encoded, whole, and with a bound
    /// on its length; fields that are not known here are passed over.
    Unreadable,
    /// It spoke as another node: in the preface of a connection or a packet of SWIM, or voted or led in
    /// the name of another. A node has one number for as long as it is a node.
    AnotherName,
    /// It sent a packet of SWIM that is none. The number of its version is looked at first, and one of
    /// another version is no offence.
    NoPacket,
    /// It asked those who agree for what cannot be: a reign or an entry with a number that is out of all
    /// proportion, entries that leave some out, a snapshot of members to come. Each reign costs a write to
    /// a disk, and entries are read from a log that has no gaps. What only contradicts what is agreed
    /// on here is refused and does not count: a leader that has lost the lead may read its log
    /// while the next one writes it.
    ImpossibleRequest,
    /// It gave those who agree an answer that is none to what was asked.
    ImpossibleAnswer,
    /// As the leader of a reign, it made two entries of one number. A leader shows an entry only when it
    /// is on its disk, and never changes it.
    TwoEntries,
    /// It asked for what only another may ask for: that another leave, come back, or give up its locks.
    AnothersWish,
    /// It proposed what only who leads proposes, and proposes to nobody else: that a node is dead or
    /// gone, or that a change of the authority is over.
    LeadersWish,
    /// It named an epoch that had not begun. Who knows of an epoch knows it from what is agreed on;
    /// this is judged after a read that began later.
    EpochToCome,
    /// Its clock shows what no clock of this kernel can, whoever set it.
    ImpossibleTime,
    /// It told of more processes than one may tell of, or of one with a number that no process has.
    ImpossibleFigures,
}

impl Offence {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Offence::Unreadable,
        Offence::AnotherName,
        Offence::NoPacket,
        Offence::ImpossibleRequest,
        Offence::ImpossibleAnswer,
        Offence::TwoEntries,
        Offence::AnothersWish,
        Offence::LeadersWish,
        Offence::EpochToCome,
        Offence::ImpossibleTime,
        Offence::ImpossibleFigures,
    ];

    /// The word that stands for it, for programs. It never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Offence::Unreadable => "unreadable",
            Offence::AnotherName => "another-name",
            Offence::NoPacket => "no-packet",
            Offence::ImpossibleRequest => "impossible-request",
            Offence::ImpossibleAnswer => "impossible-answer",
            Offence::TwoEntries => "two-entries",
            Offence::AnothersWish => "anothers-wish",
            Offence::LeadersWish => "leaders-wish",
            Offence::EpochToCome => "epoch-to-come",
            Offence::ImpossibleTime => "impossible-time",
            Offence::ImpossibleFigures => "impossible-figures",
        }
    }
}

impl std::fmt::Display for Offence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_the_one_of_the_log() {
        for offence in Offence::ALL {
            let json = serde_json::to_string(&offence).unwrap();
            assert_eq!(json, format!("\"{}\"", offence.code()));
        }
    }
}
