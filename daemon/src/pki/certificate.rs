// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a certificate says of itself, and the short names by which it is known.

use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::authority::BACKDATE;
use crate::core::hash::Hash;

/// What stands before the digits of a [`CaHash`].
const SCHEME: &str = "sha256:";

/// A text or some bytes are no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a certificate")]
pub struct NoCertificate;

/// The first certificate of a PEM text.
///
/// # Errors
/// [`NoCertificate`] when there is none.
pub fn from_pem(text: &str) -> Result<CertificateDer<'static>, NoCertificate> {
    CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| NoCertificate)
}

/// Reads a certificate. Nothing may stand behind it.
pub(super) fn parse(cert: &[u8]) -> Result<X509Certificate<'_>, NoCertificate> {
    match X509Certificate::from_der(cert) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(NoCertificate),
    }
}

/// The fingerprint of a certificate: the SHA-256 of all its bytes.
pub fn fingerprint(cert: &[u8]) -> Hash {
    Hash::of(cert)
}

/// When a certificate ends, in milliseconds since 1970.
///
/// # Errors
/// [`NoCertificate`].
pub fn expires(cert: &[u8]) -> Result<u64, NoCertificate> {
    Ok(ms(parse(cert)?.validity().not_after.timestamp()))
}

/// When a node should have a new certificate in the place of this one, in milliseconds since
/// 1970: at a third of the time from when the authority made it until it ends, so that nodes may be off for long.
///
/// # Errors
/// [`NoCertificate`].
pub fn renew_at(cert: &[u8]) -> Result<u64, NoCertificate> {
    let parsed = parse(cert)?;
    let end_ms = ms(parsed.validity().not_after.timestamp());
    let made_ms = ms(parsed.validity().not_before.timestamp())
        .saturating_add(ms(i64::try_from(BACKDATE.as_secs()).unwrap_or(0)))
        .min(end_ms);
    Ok(made_ms + (end_ms - made_ms) / 3)
}

fn ms(seconds: i64) -> u64 {
    let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    u64::try_from(seconds.as_millis()).unwrap_or(u64::MAX)
}

/// Whether `cert` may issue others.
pub fn is_authority(cert: &[u8]) -> bool {
    parse(cert).is_ok_and(|c| c.is_ca())
}

/// Whether the authority `ca` made `cert`. Says nothing of whether either is valid now.
pub fn issued_by(cert: &[u8], ca: &[u8]) -> bool {
    let (Ok(cert), Ok(ca)) = (parse(cert), parse(ca)) else {
        return false;
    };
    cert.issuer().as_raw() == ca.subject().as_raw()
        && cert.verify_signature(Some(ca.public_key())).is_ok()
}

/// By what someone who is not yet in a cluster knows its authority: the SHA-256 of the public key
/// in the certificate (its DER `SubjectPublicKeyInfo`), the same as in kubeadm. As text, `sha256:`
/// and 64 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub struct CaHash(Hash);

/// A text is no hash of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the hash of an authority is `sha256:` and 64 hexadecimal digits")]
pub struct NoCaHash;

impl CaHash {
    /// Of a certificate.
    ///
    /// # Errors
    /// [`NoCertificate`].
    pub fn of(cert: &[u8]) -> Result<Self, NoCertificate> {
        Ok(Self(Hash::of(parse(cert)?.public_key().raw)))
    }
}

/// The hash of the authority whose certificate is the first of `ca_pem`.
///
/// # Errors
/// [`NoCertificate`].
pub fn ca_hash(ca_pem: &str) -> Result<CaHash, NoCertificate> {
    CaHash::of(&from_pem(ca_pem)?)
}

impl PartialEq for CaHash {
    /// Takes the same time whatever differs.
    fn eq(&self, other: &Self) -> bool {
        verify_slices_are_equal(self.0.bytes(), other.0.bytes()).is_ok()
    }
}

impl Eq for CaHash {}

impl std::fmt::Display for CaHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{SCHEME}{}", self.0)
    }
}

impl std::str::FromStr for CaHash {
    type Err = NoCaHash;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix(SCHEME).ok_or(NoCaHash)?;
        digits.parse().map(Self).map_err(|_| NoCaHash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Validity, request};
    use ssi::id::NodeId;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    fn leaf(authority: &Authority, validity: Validity) -> CertificateDer<'static> {
        let (_, csr) = request().unwrap();
        let addr = "10.0.0.1".parse().unwrap();
        let pem = authority
            .sign(&csr, NodeId::new(1).unwrap(), addr, validity)
            .unwrap();
        from_pem(&pem).unwrap()
    }

    #[test]
    fn the_hash_of_an_authority_is_that_of_its_key() {
        let (authority, pem) = Authority::new("one").unwrap();
        let hash = ca_hash(&pem).unwrap();
        let text = hash.to_string();
        assert_eq!(text.len(), 71);
        assert_eq!(text.parse(), Ok(hash));
        let key = rcgen::KeyPair::from_pem(&authority.key_pem()).unwrap();
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        assert_eq!(text, format!("sha256:{}", Hash::of(&public)));
        let (_, other) = Authority::new("one").unwrap();
        assert_ne!(ca_hash(&other).unwrap(), hash);
        for wrong in ["", "sha256:", "sha1:00", &text[7..], &text[..70]] {
            assert_eq!(wrong.parse::<CaHash>(), Err(NoCaHash), "{wrong}");
        }
        assert_eq!(ca_hash("no pem"), Err(NoCertificate));
    }

    #[test]
    fn it_is_renewed_at_a_third_of_its_life() {
        let (authority, _) = Authority::new("one").unwrap();
        let now_ms = 1_000 * DAY_MS;
        let cert = leaf(
            &authority,
            Validity::starting(now_ms, Duration::from_secs(9 * 24 * 3600)),
        );
        assert_eq!(expires(&cert), Ok(now_ms + 9 * DAY_MS));
        assert_eq!(renew_at(&cert), Ok(now_ms + 3 * DAY_MS));
        assert_eq!(expires(b"nothing"), Err(NoCertificate));
        assert_eq!(renew_at(&cert[1..]), Err(NoCertificate));
        let longer = [&cert[..], b"0"].concat();
        assert_eq!(expires(&longer), Err(NoCertificate));
    }

    #[test]
    fn who_made_it() {
        let (one, pem) = Authority::new("one").unwrap();
        let (_, other) = Authority::new("one").unwrap();
        let cert = leaf(&one, Validity::default());
        let (ca, other) = (from_pem(&pem).unwrap(), from_pem(&other).unwrap());
        assert!(issued_by(&cert, &ca));
        assert!(!issued_by(&cert, &other), "same name, another key");
        assert!(!issued_by(&ca, &cert));
        assert!(is_authority(&ca) && !is_authority(&cert));
        assert_ne!(fingerprint(&cert), fingerprint(&ca));
    }
}
