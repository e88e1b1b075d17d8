// SPDX-License-Identifier: MIT OR Apache-2.0

use proptest::prelude::*;

use super::*;

/// Values, and the number of the last wish.
#[derive(Default)]
struct Bench {
    kv: Kv,
    wishes: u128,
}

fn done(revision: u64) -> Outcome {
    Outcome::Done { revision }
}

fn refused(why: Refusal) -> Outcome {
    Outcome::Refused(why)
}

impl Bench {
    fn wish(&mut self, name: &str, expected: Option<u64>, value: Option<&[u8]>) -> Command {
        self.wishes += 1;
        Command {
            id: Unique(self.wishes),
            after: self.kv.revision,
            name: name.to_owned(),
            expected,
            value: value.map(<[u8]>::to_vec),
        }
    }

    fn put(&mut self, name: &str, value: &[u8]) -> Outcome {
        let wish = self.wish(name, None, Some(value));
        self.kv.apply(&wish)
    }

    fn swap(&mut self, name: &str, expected: u64, value: &[u8]) -> Outcome {
        let wish = self.wish(name, Some(expected), Some(value));
        self.kv.apply(&wish)
    }

    fn delete(&mut self, name: &str, expected: Option<u64>) -> Outcome {
        let wish = self.wish(name, expected, None);
        self.kv.apply(&wish)
    }

    fn get(&self, name: &str) -> Option<(&[u8], u64)> {
        let value = self.kv.get(name)?;
        Some((&value.bytes, value.revision))
    }
}

#[test]
fn values_come_change_and_go() {
    let mut b = Bench::default();
    assert_eq!(b.put("a", b"1"), done(1));
    assert_eq!(b.put("b", b""), done(2));
    assert_eq!(b.put("a", b"2"), done(3));
    assert_eq!(b.get("a"), Some((&b"2"[..], 3)));
    assert_eq!(b.get("b"), Some((&b""[..], 2)));
    assert_eq!(b.delete("a", None), done(4));
    assert_eq!((b.get("a"), b.kv.bytes), (None, 1));
    // What is not there needs no change to be gone.
    assert_eq!(b.delete("a", None), done(4));
}

#[test]
fn a_swap_needs_the_revision_it_was_told() {
    let mut b = Bench::default();
    assert_eq!(b.swap("a", 0, b"1"), done(1));
    let differs = |revision| refused(Refusal::Differs { revision });
    assert_eq!(b.swap("a", 0, b"2"), differs(1));
    assert_eq!(b.swap("b", 1, b"2"), differs(0));
    assert_eq!(b.swap("a", 1, b"2"), done(2));
    assert_eq!(b.delete("a", Some(1)), differs(2));
    assert_eq!(b.delete("a", Some(2)), done(3));
    // A value of the same name that is made anew has another revision.
    assert_eq!(b.swap("a", 0, b"2"), done(4));
    assert_eq!(b.swap("a", 2, b"3"), differs(4));
}

#[test]
fn names_are_listed_by_prefix() {
    let mut b = Bench::default();
    for name in ["b", "a/2", "a", "a/1", "a0"] {
        b.put(name, b"");
    }
    let names = |prefix| b.kv.list(prefix).map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(names("a/"), ["a/1", "a/2"]);
    assert_eq!(names(""), ["a", "a/1", "a/2", "a0", "b"]);
    assert!(names("c").is_empty());
}

#[test]
fn changes_since_a_revision_are_told_until_they_are_too_old() {
    let mut b = Bench::default();
    assert_eq!(b.kv.since(0, "").unwrap().count(), 0);
    b.put("a", b"1");
    b.put("b", b"1");
    b.delete("a", None);
    let told: Vec<_> = b.kv.since(1, "").unwrap().collect();
    assert_eq!(told.len(), 2);
    assert_eq!((told[0].0, &*told[0].1.name), (2, "b"));
    assert_eq!((told[1].0, &told[1].1.value), (3, &None));
    assert_eq!(b.kv.since(1, "b").unwrap().count(), 1);
    assert_eq!(b.kv.since(99, "").unwrap().count(), 0);
    for _ in 0..MAX_CHANGES {
        b.put("c", b"");
    }
    let last = b.kv.revision();
    let first = last - MAX_CHANGES as u64;
    assert_eq!(b.kv.since(first - 1, "").err(), Some(Compacted { first }));
    assert_eq!(b.kv.since(first, "").unwrap().count(), MAX_CHANGES);
    // Long ones are kept for a shorter time.
    for _ in 0..9 {
        b.put("d", &[0; MAX_VALUE_BYTES - 1]);
    }
    let kept = MAX_CHANGES_BYTES / MAX_VALUE_BYTES;
    let last = b.kv.revision();
    assert_eq!(b.kv.since(last - kept as u64, "").unwrap().count(), kept);
    assert!(b.kv.since(last - kept as u64 - 1, "").is_err());
}

#[test]
fn a_change_whose_answer_was_lost_is_asked_for_again_and_made_once() {
    let mut b = Bench::default();
    let first = b.wish("a", Some(0), Some(b"1"));
    assert_eq!(b.kv.apply(&first), done(1));
    b.put("a", b"2");
    assert_eq!(b.kv.apply(&first), done(1));
    assert_eq!(b.get("a"), Some((&b"2"[..], 2)));
    let gone = b.wish("a", None, None);
    assert_eq!(b.kv.apply(&gone), done(3));
    b.put("a", b"3");
    assert_eq!(b.kv.apply(&gone), done(3));
    assert_eq!(b.get("a"), Some((&b"3"[..], 4)));
    for _ in 0..MAX_MADE {
        b.put("b", b"");
    }
    // Nobody knows of it any more; to make it would be wrong.
    assert_eq!(b.kv.apply(&first), refused(Refusal::Forgotten));
    assert_eq!(b.get("a"), Some((&b"3"[..], 4)));
}

#[test]
fn all_is_bounded() {
    let mut b = Bench::default();
    let long = vec![0; MAX_VALUE_BYTES + 1];
    assert_eq!(b.put("a", &long), refused(Refusal::TooLong));
    for name in ["", "a b", "é", &"x".repeat(MAX_NAME_BYTES + 1)] {
        assert_eq!(b.put(name, b""), refused(Refusal::NameInvalid), "{name}");
    }
    let name = |i: usize| format!("{i:0>MAX_NAME_BYTES$}");
    for i in 0..MAX_VALUES {
        assert!(matches!(b.put(&name(i), b"x"), Outcome::Done { .. }), "{i}");
    }
    assert_eq!(b.put("one-more", b""), refused(Refusal::Full));
    for i in 0..MAX_VALUES {
        b.delete(&name(i), None);
    }
    assert_eq!(b.kv.bytes, 0);
    let mut values = 0;
    while b.put(&name(values), &long[1..]) != refused(Refusal::Full) {
        values += 1;
    }
    assert_eq!(values, MAX_TOTAL_BYTES / (MAX_VALUE_BYTES + MAX_NAME_BYTES));
    // A shorter one in its place is welcome.
    let last = b.kv.revision();
    assert_eq!(b.put(&name(0), b""), done(last + 1));
    let json = serde_json::to_vec(&b.kv).unwrap();
    assert!(json.len() < 4 << 20, "{}", json.len());
    let back: Kv = serde_json::from_slice(&json).unwrap();
    assert_eq!(back, b.kv);
}

proptest! {
    /// Who knows an earlier state and the changes since then knows all.
    #[test]
    fn changes_lead_from_one_state_to_the_next(
        wishes in prop::collection::vec((0..4_u8, any::<Option<u8>>(), prop::option::of(0..20_u64)), 1..60),
        from in 0..60_u64,
    ) {
        let mut b = Bench::default();
        let mut known = BTreeMap::new();
        for (name, value, expected) in wishes {
            let value = value.map(|v| vec![v]);
            let wish = b.wish(&name.to_string(), expected, value.as_deref());
            let before = b.kv.clone();
            match b.kv.apply(&wish) {
                Outcome::Done { revision } => {
                    prop_assert_eq!(b.kv.get(&wish.name).map(|v| v.bytes.to_vec()), value);
                    prop_assert_eq!(revision, b.kv.revision());
                }
                Outcome::Refused(_) => prop_assert_eq!(&before, &b.kv),
            }
            if b.kv.revision() <= from {
                known.clone_from(&b.kv.values);
            }
        }
        for (revision, change) in b.kv.since(from, "").unwrap() {
            match change.value.clone() {
                Some(value) => {
                    prop_assert_eq!(value.revision, revision);
                    known.insert(Arc::clone(&change.name), value);
                }
                None => drop(known.remove(&change.name)),
            }
        }
        prop_assert_eq!(known, b.kv.values);
    }
}
