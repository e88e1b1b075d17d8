// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ssictl pki`: certificates. Needs no daemon.

use ssi::id::{MAX_NODE, NodeId};
use ssid::pki;

use crate::cli::{PkiInit, PkiIssue};
use crate::fail::Fail;

/// Makes an authority.
pub(crate) fn init(a: &PkiInit) -> Result<(), Fail> {
    pki::init(&a.dir).map_err(|e| Fail::other(&e))
}

/// Makes a certificate.
pub(crate) fn issue(a: &PkiIssue) -> Result<(), Fail> {
    let number = a.node.strip_prefix('n').unwrap_or(&a.node);
    let node = number.parse().ok().and_then(NodeId::new).ok_or_else(|| {
        Fail::usage(format!(
            "{:?} is no node: they are n1 to n{MAX_NODE}",
            a.node
        ))
    })?;
    pki::issue(&a.dir, node, a.addr, &a.out).map_err(|e| Fail::other(&e))
}
