// SPDX-License-Identifier: MIT OR Apache-2.0

//! The files that say which node this machine is.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::OnceLock;

use super::{credentials, node, scratch};
use crate::core::state::Unique;
use crate::pki::Seal;
use crate::seat::{Credentials, Seat, Store};
use crate::tls::{Identity, Revoked};

/// The files, in the order of the digits that stand for them.
pub(super) const FILES: [&str; 5] = ["seat.json", "join.json", "ca.pem", "node.pem", "seal.key"];
/// What the key in the file seals.
const SECRET: &[u8] = b"secret";

/// The digit of a file, and what stands in it; the others are as they should be. What is read is the
/// same after it is written and read again.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let Some((digit, content)) = data.split_first() else {
        return;
    };
    static WHOLE: OnceLock<Credentials> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| credentials(2));
    let dir = scratch();
    let store = Store::open(dir.path()).expect("a directory");
    store.save_credentials(whole).expect("files");
    store.save(&seat()).expect("a file");
    let file = dir
        .path()
        .join(FILES[usize::from(digit.wrapping_sub(b'0')) % FILES.len()]);
    fs::write(&file, content).expect("a file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a file");
    if let Ok(Some((seat, credentials))) = store.load() {
        store.save_credentials(&credentials).expect("files");
        store.save(&seat).expect("a file");
        let again = store.load().expect("what was written is read");
        assert_eq!(again.as_ref(), Some(&(seat, credentials)));
        let (seat, credentials) = again.expect("a place");
        let _ = Identity::of(seat.node, &credentials, Revoked::new());
    }
    if let Ok(Some(a_try)) = store.last_try() {
        store.save_try(&a_try).expect("a file");
        let again = store.last_try().expect("what was written is read");
        let again = again.expect("a try");
        assert_eq!((again.key, again.request), (a_try.key, a_try.request));
    }
    if store.seal().exists()
        && let Ok(seal) = Seal::load(&store.seal())
    {
        let sealed = seal.seal("fuzz", SECRET).expect("it is short");
        assert_eq!(seal.open("fuzz", &sealed).as_deref(), Ok(SECRET));
        assert!(seal.open("fuzz", content).is_err());
    }
}

/// A place as it is.
pub(super) fn seat() -> Seat {
    Seat {
        cluster: Unique(7),
        node: node(2),
        since: 3,
        name: "two".to_owned(),
        addr: ([10, 0, 0, 2], 7400).into(),
        others: vec![crate::seat::Other {
            node: node(1),
            name: "n1".to_owned(),
            addr: ([10, 0, 0, 1], 7400).into(),
        }],
    }
}
