// SPDX-License-Identifier: MIT OR Apache-2.0

//! Whose processes a node hosts. A process whose home is this node always may come back.

use std::ops::RangeInclusive;

/// Which processes of other nodes this one takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Any at all.
    pub host: bool,
    /// Those that act, or could act, as root.
    pub root: bool,
    /// Those all of whose user ids lie in one of these ranges; all others too if there are none.
    pub uids: Vec<RangeInclusive<u32>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            host: true,
            root: true,
            uids: Vec::new(),
        }
    }
}

impl Policy {
    /// Why a process that has the user ids `uids` is not taken; `None` if it is.
    pub fn refuses(&self, uids: &[u32]) -> Option<String> {
        if !self.host {
            return Some("it hosts no processes of other nodes".to_owned());
        }
        if self.root && self.uids.is_empty() {
            return None;
        }
        if uids.is_empty() {
            return Some("it was not told whose process it is".to_owned());
        }
        if uids.contains(&0) {
            // The ranges are about users; root has a word of its own.
            return (!self.root).then(|| "it hosts no processes of root".to_owned());
        }
        let taken = |uid: &u32| self.uids.is_empty() || self.uids.iter().any(|r| r.contains(uid));
        let other = uids.iter().find(|uid| !taken(uid))?;
        Some(format!("it hosts no processes of user {other}"))
    }
}

/// Reads `1000` or `1000-1999`.
///
/// # Errors
/// What is wrong with it, for people.
pub fn range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if first <= last => Ok(first..=last),
        _ => Err(format!(
            "{text:?} is no range of user ids, such as \"1000-1999\""
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(host: bool, root: bool, uids: &[&str]) -> Policy {
        Policy {
            host,
            root,
            uids: uids.iter().map(|t| range(t).unwrap()).collect(),
        }
    }

    #[test]
    fn everything_is_taken_unless_said_otherwise() {
        let p = Policy::default();
        for uids in [&[][..], &[0], &[1000, 0, 1000, 1000]] {
            assert_eq!(p.refuses(uids), None);
        }
    }

    #[test]
    fn nothing_means_nothing() {
        let p = policy(false, true, &["0-4294967295"]);
        for uids in [&[][..], &[0], &[1000]] {
            assert!(p.refuses(uids).unwrap().contains("no processes of other"));
        }
    }

    #[test]
    fn one_id_of_root_makes_it_roots() {
        let p = policy(true, false, &[]);
        assert_eq!(p.refuses(&[1000; 4]), None);
        for uids in [[0; 4], [1000, 1000, 0, 1000]] {
            assert!(p.refuses(&uids).unwrap().contains("root"));
        }
        assert!(p.refuses(&[]).is_some());
    }

    #[test]
    fn ranges_are_about_users() {
        let p = policy(true, true, &["1000-1999", "4000"]);
        assert_eq!(p.refuses(&[0; 4]), None);
        assert_eq!(p.refuses(&[1000, 1999, 4000, 1500]), None);
        for uid in [999, 2000, 3999, u32::MAX] {
            let why = p.refuses(&[1000, uid, 1000, 1000]).unwrap();
            assert!(why.contains(&uid.to_string()), "{why}");
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "a", "5-", "-5", "9-5", "1-2-3", "4294967296"] {
            assert!(range(text).is_err(), "{text}");
        }
        assert_eq!(range(" 7 - 9 ").unwrap(), 7..=9);
    }
}
