// SPDX-License-Identifier: MIT OR Apache-2.0

//! Long messages in parts: what carries them takes only short ones, and has others to carry beside.

use std::collections::VecDeque;

/// Longest part.
pub const PART_BYTES: usize = 256 << 10;
/// So many messages of one sender may be on their way at once; the oldest gives way to another.
const MAX_BEGUN: usize = 4;

/// A part of a message. The parts of one are sent in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Chosen by the sender, the same for all parts of a message.
    pub id: u64,
    /// Where it begins in the message.
    pub at: u64,
    /// What it has of it.
    pub bytes: Vec<u8>,
    /// Whether it is the last.
    pub is_last: bool,
}

/// Cuts a message into parts, at least one.
pub fn cut(id: u64, message: &[u8]) -> Vec<Part> {
    let mut parts: Vec<Part> = message
        .chunks(PART_BYTES)
        .zip((0_u64..).step_by(PART_BYTES))
        .map(|(bytes, at)| Part {
            id,
            at,
            bytes: bytes.to_vec(),
            is_last: false,
        })
        .collect();
    if parts.is_empty() {
        let (at, bytes) = (0, Vec::new());
        parts.push(Part {
            id,
            at,
            bytes,
            is_last: false,
        });
    }
    if let Some(last) = parts.last_mut() {
        last.is_last = true;
    }
    parts
}

/// A part that does not follow the one before it: that was lost, or the message is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a part of a message that has no place in it")]
pub struct Misplaced;

/// What came of the messages of one sender.
#[derive(Debug)]
pub struct Parts {
    max_bytes: usize,
    begun: VecDeque<(u64, Vec<u8>)>,
}

impl Parts {
    /// Of messages no longer than `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            begun: VecDeque::new(),
        }
    }

    /// Takes a part. Returns the message when it was the last.
    ///
    /// # Errors
    /// [`Misplaced`]; nothing is left of the message then.
    pub fn take(&mut self, part: Part) -> Result<Option<Vec<u8>>, Misplaced> {
        let known = self.begun.iter().position(|(id, _)| *id == part.id);
        let mut message = match known.and_then(|i| self.begun.remove(i)) {
            Some((_, message)) => message,
            None => Vec::new(),
        };
        let follows = u64::try_from(message.len()) == Ok(part.at);
        if !follows || part.bytes.len() > self.max_bytes - message.len().min(self.max_bytes) {
            return Err(Misplaced);
        }
        if message.is_empty() {
            message = part.bytes;
        } else {
            message.extend_from_slice(&part.bytes);
        }
        if part.is_last {
            return Ok(Some(message));
        }
        if self.begun.len() == MAX_BEGUN {
            self.begun.pop_front();
        }
        self.begun.push_back((part.id, message));
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 3 * PART_BYTES;

    fn message(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| i.to_le_bytes()[0]).collect()
    }

    #[test]
    fn messages_come_whole_also_side_by_side() {
        let mut parts = Parts::new(MAX);
        for bytes in [0, 1, PART_BYTES, PART_BYTES + 1, MAX] {
            let all = cut(7, &message(bytes));
            let other = cut(8, &message(MAX));
            assert_eq!(all.len(), bytes.div_ceil(PART_BYTES).max(1));
            assert_eq!(parts.take(other[0].clone()), Ok(None));
            let last = all.len() - 1;
            for part in &all[..last] {
                assert_eq!(parts.take(part.clone()), Ok(None));
            }
            assert_eq!(parts.take(all[last].clone()), Ok(Some(message(bytes))));
            assert_eq!(parts.take(other[1].clone()), Ok(None));
            assert_eq!(parts.take(other[2].clone()), Ok(Some(message(MAX))));
        }
    }

    #[test]
    fn what_does_not_follow_or_is_too_long_is_nothing() {
        let mut parts = Parts::new(MAX);
        let all = cut(7, &message(MAX + 1));
        assert_eq!(
            parts.take(all[1].clone()),
            Err(Misplaced),
            "without the first"
        );
        for part in &all[..3] {
            assert_eq!(parts.take(part.clone()), Ok(None));
        }
        assert_eq!(parts.take(all[3].clone()), Err(Misplaced), "too long");
        assert_eq!(parts.take(all[0].clone()), Ok(None));
        assert_eq!(parts.take(all[0].clone()), Err(Misplaced), "twice");
        assert_eq!(
            parts.take(all[1].clone()),
            Err(Misplaced),
            "nothing is left"
        );
    }

    #[test]
    fn who_begins_many_has_only_the_last() {
        let mut parts = Parts::new(MAX);
        for id in 0..1000 {
            assert_eq!(parts.take(cut(id, &message(MAX))[0].clone()), Ok(None));
        }
        assert_eq!(parts.begun.len(), MAX_BEGUN);
        assert_eq!(parts.take(cut(0, &message(MAX))[1].clone()), Err(Misplaced));
        assert_eq!(parts.take(cut(999, &message(MAX))[1].clone()), Ok(None));
    }
}
