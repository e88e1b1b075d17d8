// SPDX-License-Identifier: MIT OR Apache-2.0

//! Requests for certificates, certificates, and what a machine that joins shows and is told.

use super::{authority, node};
use crate::pki::certificate::{CaHash, from_pem, is_authority, issued_by};
use crate::pki::{Authority, Token, Validity, expires, renew_at};
use crate::tls;

/// Bytes as each of them. Nothing but what the authority made is taken for that, and what it makes
/// is for the node that was meant.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let (authority, ca_pem) = authority();
    let validity = Validity::default();
    if let Ok(pem) = authority.sign(data, node(7), [10, 0, 0, 7].into(), validity) {
        let cert = from_pem(&pem).expect("a certificate");
        assert_eq!(tls::node_of(&cert), Some(node(7)));
        assert!(!is_authority(&cert));
        assert!(issued_by(&cert, &from_pem(ca_pem).expect("a certificate")));
    }
    certificate(data);
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.reveal(), text);
    }
    if let Ok(hash) = text.parse::<CaHash>() {
        assert_eq!(hash.to_string(), text);
    }
    if let Ok(der) = from_pem(text) {
        certificate(&der);
        let key = authority.key_pem();
        assert!(text.contains(ca_pem.as_str()) || Authority::load(text, &key).is_err());
    }
    assert!(Authority::load(ca_pem, text).is_err());
}

fn certificate(der: &[u8]) {
    let (_, ca_pem) = authority();
    let ca = from_pem(ca_pem).expect("a certificate");
    assert!(!issued_by(der, &ca) || der == &ca[..]);
    let _ = (is_authority(der), CaHash::of(der));
    match (renew_at(der), expires(der)) {
        (Ok(renew_ms), Ok(end_ms)) => assert!(renew_ms <= end_ms),
        (renew, end) => assert!(renew.is_err() && end.is_err()),
    }
    let _ = tls::node_of(&der.into());
}
