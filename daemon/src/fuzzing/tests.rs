// SPDX-License-Identifier: MIT OR Apache-2.0

//! The corpus of `fuzz/`, as it is and with changes: what a run of the fuzzer found stays found
//! without the fuzzer.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::pki::Seal;
use crate::pki::certificate::from_pem;
use crate::seat::{Store, Try};
use crate::tls::{Identity, Revoked};

mod seeds;

type Target = (&'static str, fn(&[u8]));

/// Name and function of each target.
const TARGETS: [Target; 15] = [
    ("audit", audit::run),
    ("command", command::run),
    ("config", config::run),
    ("http", http::run),
    ("join", join::run),
    ("log", log::run),
    ("message", message::run),
    ("netlink", netlink::run),
    ("pki", pki::run),
    ("raft", raft::run),
    ("seat", seat::run),
    ("swim", swim::run),
    ("tls", tls::run),
    ("varlink", varlink::run),
    ("wire", wire::run),
];
/// Changed copies of all files of a target together that are tried, and of those of one that takes its
/// time.
const CHANGED: u64 = 300;
const CHANGED_SLOW: u64 = 20;
const SLOW: &str = "raft";
/// Most bytes of all files.
const MAX_CORPUS_BYTES: usize = 300 * 1024;

fn corpus(target: &str) -> PathBuf {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    fuzz.join(target)
}

/// The files of a target, in the order of their names.
fn files(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(corpus(target)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| (path.clone(), fs::read(path).unwrap());
    paths.into_iter().map(read).collect()
}

/// xorshift64, Marsaglia, 2003.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % n.max(1) as u64).unwrap()
    }

    /// Up to four changes of `bytes`: cut, flipped, set, doubled, left out or from `other`.
    fn change(&mut self, bytes: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let end = (at + 1 + self.below(8)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 if at < end => bytes[at] ^= 1 << self.below(8),
                2 if at < end => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 if at < end => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
                4 if at < end => drop(bytes.drain(at..end)),
                _ => {
                    let from = self.below(other.len());
                    let to = (from + self.below(64)).min(other.len());
                    drop(bytes.splice(at..at, other[from..to].to_vec()));
                }
            }
        }
    }
}

/// Says which bytes it was, should they do harm.
struct Culprit<'a>(&'a str, &'a [u8]);

impl Drop for Culprit<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let path = std::env::temp_dir().join(format!("unum-fuzz-{}", self.0));
            drop(fs::write(&path, self.1));
            eprintln!("target {}: the bytes are in {}", self.0, path.display());
        }
    }
}

fn replay(name: &str) {
    let (_, run) = TARGETS.iter().find(|(n, _)| *n == name).unwrap();
    let files = files(name);
    assert!(!files.is_empty());
    for (_, bytes) in &files {
        let _culprit = Culprit(name, bytes);
        run(bytes);
    }
    let mut dice = Dice(20_531);
    let changed = if name == SLOW { CHANGED_SLOW } else { CHANGED };
    for _ in 0..changed {
        let (_, bytes) = &files[dice.below(files.len())];
        let (_, other) = &files[dice.below(files.len())];
        let mut bytes = bytes.clone();
        dice.change(&mut bytes, other);
        let _culprit = Culprit(name, &bytes);
        run(&bytes);
    }
}

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*
        const REPLAYED: &[&str] = &[$(stringify!($name)),*];
    };
}

mod corpus_of {
    use super::replay;

    replayed! { audit command config http join log message netlink pki raft seat swim tls varlink wire }

    #[test]
    fn all_targets_are_replayed_and_fuzzed() {
        let targets: Vec<&str> = super::TARGETS.iter().map(|(name, _)| *name).collect();
        assert_eq!(REPLAYED, targets);
        let manifest = include_str!("../../../fuzz/Cargo.toml");
        for name in targets {
            assert!(
                manifest.contains(&format!("path = \"targets/{name}.rs\"")),
                "{name}"
            );
        }
    }
}

#[test]
fn the_corpus_is_small() {
    let all = TARGETS.iter().flat_map(|(name, _)| files(name));
    let bytes: usize = all.map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes <= MAX_CORPUS_BYTES, "{bytes} bytes");
}

/// What a power cut or a broken disk may leave of the files that say which node this is: each is refused, or means what
/// it did.
#[test]
fn a_file_cut_anywhere_is_refused_or_means_what_it_did() {
    let dir = scratch();
    let store = Store::open(dir.path()).unwrap();
    store.save_credentials(&credentials(2)).unwrap();
    store.save(&seat::seat()).unwrap();
    let (key, request) = crate::pki::request().unwrap();
    let ca_hash = "sha256:".to_owned() + &"0".repeat(64);
    let kept = Try {
        ca_hash,
        key,
        request,
    };
    store.save_try(&kept).unwrap();
    Seal::create(&store.seal()).unwrap();
    let means = || -> Result<_, Box<dyn std::error::Error>> {
        let (seat, credentials) = store.load()?.ok_or("no place")?;
        Identity::of(seat.node, &credentials, Revoked::new())?;
        let certificates = [&credentials.ca, &credentials.node].map(|pem| from_pem(pem));
        let [ca, node] = certificates;
        let a_try = store.last_try()?.ok_or("no try")?;
        Seal::load(&store.seal())?;
        Ok((seat, ca?, node?, a_try.ca_hash, a_try.key, a_try.request))
    };
    let whole = means().unwrap();
    for name in seat::FILES {
        let path = dir.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            if let Ok(found) = means() {
                assert_eq!(found, whole, "{name} cut at {cut}");
                assert!(bytes[cut..].trim_ascii().is_empty(), "{name} cut at {cut}");
            }
        }
        fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(means().unwrap(), whole);
}

/// Keys and certificates are new each time: to be run when a format changes, by hand.
#[test]
#[ignore = "writes fuzz/corpus"]
fn write_corpus() {
    for (target, name, bytes) in seeds::all() {
        fs::create_dir_all(corpus(target)).unwrap();
        fs::write(corpus(target).join(name), bytes).unwrap();
    }
}
