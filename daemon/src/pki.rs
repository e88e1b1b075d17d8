// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster's own certificate authority and the certificates of its nodes.
//!
//! A node is who its certificate says: the name `nN.ssi` in it stands for node N.

use ssi::id::NodeId;

pub mod authority;
pub mod certificate;
pub mod seal;
pub mod token;

pub use authority::{Authority, Validity, name_of_key, request};
pub use certificate::{CaHash, ca_hash, expires, fingerprint, renew_at};
pub use seal::Seal;
pub use token::Token;

/// The name of a node in its certificate.
pub fn node_name(node: NodeId) -> String {
    format!("{node}.ssi")
}
