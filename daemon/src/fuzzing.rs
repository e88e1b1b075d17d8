// SPDX-License-Identifier: MIT OR Apache-2.0

//! Everything that takes bytes from outside, one function for each, for the fuzzer in `fuzz/` and for a
//! test that replays its corpus with changes.
//!
//! A function panics when its bytes do harm: nothing else counts, they may well be refused. What
//! is compared beside is said where it is.

pub mod audit;
pub mod command;
pub mod config;
pub mod http;
pub mod join;
pub mod log;
mod machine;
pub mod message;
pub mod netlink;
pub mod pki;
pub mod raft;
pub mod seat;
pub mod swim;
#[cfg(test)]
mod tests;
pub mod tls;
pub mod varlink;
pub mod wire;

use std::path::Path;

use ssi::id::NodeId;
use tempfile::TempDir;

use crate::seat::Credentials;

/// Where files are that need not last.
const MEMORY: &str = "/dev/shm";

/// A directory of its own, in memory if there is such a place.
///
/// # Panics
/// When there is none.
fn scratch() -> TempDir {
    let made = if Path::new(MEMORY).is_dir() {
        tempfile::tempdir_in(MEMORY)
    } else {
        tempfile::tempdir()
    };
    made.expect("a directory can be made")
}

/// The node with this number, which is one.
fn node(n: u16) -> NodeId {
    NodeId::new(n).expect("the number of a node")
}

/// The authority of a cluster and its certificate, PEM; another in each process.
fn authority() -> &'static (crate::pki::Authority, String) {
    static AUTHORITY: std::sync::OnceLock<(crate::pki::Authority, String)> =
        std::sync::OnceLock::new();
    AUTHORITY.get_or_init(|| crate::pki::Authority::new("fuzz").expect("an authority"))
}

/// How node `n` of the cluster of [`authority`] proves who it is.
fn credentials(n: u16) -> Credentials {
    let (authority, ca) = authority();
    let (key, request) = crate::pki::request().expect("a request");
    let addr = [127, 0, 0, 1].into();
    let validity = crate::pki::Validity::default();
    let cert = authority.sign(&request, node(n), addr, validity);
    Credentials {
        ca: ca.clone(),
        node: key + &cert.expect("a certificate"),
    }
}
