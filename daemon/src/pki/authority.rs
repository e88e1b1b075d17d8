// SPDX-License-Identifier: MIT OR Apache-2.0

//! The authority of a cluster at work: it signs what nodes ask for.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use ssi::id::NodeId;
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::OID_SIG_ECDSA_WITH_SHA256;
use x509_parser::prelude::FromDer;

use super::certificate::{self, NoCertificate};
use super::node_name;
use crate::core::hash::Hash;

/// Certificates are valid from this long before they are made: the clocks of nodes may be behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(30 * DAY_S);
/// Name of an authority. It stands in its certificate with the name of the cluster.
const CA_NAME: &str = "Unum cluster authority";
/// An authority is valid for so long.
const CA_LIFE: Duration = Duration::from_secs(3650 * DAY_S);
/// A node is, unless something else is said.
const NODE_LIFE: Duration = Duration::from_secs(3650 * DAY_S);
const DAY_S: u64 = 24 * 3600;
/// Longest name of a cluster, which X.509 sets for what it stands in.
const MAX_NAME_BYTES: usize = 64;
/// Longest request. One for a P-256 key has some 300 bytes.
const MAX_REQUEST_BYTES: usize = 4096;
/// An uncompressed point of P-256.
const POINT_BYTES: usize = 65;
const UNCOMPRESSED: u8 = 4;
const SERIAL_BYTES: usize = 16;
/// The end of the year 9999 in milliseconds since 1970, beyond which no certificate can say a time.
const MAX_MS: u64 = 253_402_300_799_000;

/// The authority cannot be used, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is empty, too long or not printable.
    #[error("the name of a cluster has 1 to {MAX_NAME_BYTES} printable characters")]
    Name,
    /// What should be its certificate is not.
    #[error("the authority's certificate cannot be read")]
    Certificate(#[from] NoCertificate),
    /// The certificate may not issue others.
    #[error("the certificate is not that of an authority")]
    NoAuthority,
    /// The key and the certificate do not belong together.
    #[error("the key is not that of the authority's certificate")]
    OtherKey,
    /// Another kind of key.
    #[error("only P-256 keys are used")]
    Kind,
    /// Something asks for a certificate that is no request.
    #[error("not a request for a certificate")]
    NoRequest,
    /// Whoever asks does not have the key.
    #[error("the request is not signed with its own key")]
    Signature,
    /// The system gives no random numbers.
    #[error("no random numbers")]
    Random,
    /// The library refuses.
    #[error("cannot make the certificate")]
    Make(#[source] rcgen::Error),
}

/// From when until when a certificate is valid, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    from_ms: u64,
    until_ms: u64,
}

impl Validity {
    /// From `now_ms`, and some time before for clocks that are behind, for as long as `life`.
    pub fn starting(now_ms: u64, life: Duration) -> Self {
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        Self {
            from_ms: now_ms.saturating_sub(ms(BACKDATE)).min(MAX_MS),
            until_ms: now_ms.saturating_add(ms(life)).min(MAX_MS),
        }
    }

    /// From now on, for as long as `life`.
    pub fn from_now(life: Duration) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self::starting(u64::try_from(now.as_millis()).unwrap_or(MAX_MS), life)
    }

    fn set(self, params: &mut CertificateParams) {
        let time = |ms: u64| {
            let seconds = i64::try_from(ms / 1000).unwrap_or(0);
            OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
        };
        params.not_before = time(self.from_ms);
        params.not_after = time(self.until_ms);
    }
}

impl Default for Validity {
    fn default() -> Self {
        Self::from_now(NODE_LIFE)
    }
}

/// Makes a key and a request to have it certified: the key as PEM, the request as DER.
///
/// # Errors
/// [`Error::Make`].
pub fn request() -> Result<(String, Vec<u8>), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Make)?;
    let mut params = CertificateParams::new(Vec::new()).map_err(Error::Make)?;
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(Error::Make)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

/// The key in `request`, if whoever made it has the other half. Nothing else in it counts.
fn key_of(request: &[u8]) -> Result<SubjectPublicKeyInfo, Error> {
    if request.len() > MAX_REQUEST_BYTES {
        return Err(Error::NoRequest);
    }
    let Ok(([], parsed)) = X509CertificationRequest::from_der(request) else {
        return Err(Error::NoRequest);
    };
    let info = &parsed.certification_request_info;
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| Error::Kind)?;
    if key.algorithm() != &PKCS_ECDSA_P256_SHA256
        || key.der_bytes().len() != POINT_BYTES
        || key.der_bytes().first() != Some(&UNCOMPRESSED)
        || parsed.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256
    {
        return Err(Error::Kind);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key.der_bytes())
        .verify(info.raw, &parsed.signature_value.data)
        .map_err(|_| Error::Signature)?;
    Ok(key)
}

/// What stands for the key in `request`: who asks with the same request again is the same machine, and no other
/// can say to be it, as nobody else has the other half.
///
/// # Errors
/// [`Error::NoRequest`], [`Error::Kind`], [`Error::Signature`].
pub fn name_of_key(request: &[u8]) -> Result<u128, Error> {
    let hash = Hash::of(key_of(request)?.der_bytes());
    let first = hash.bytes().first_chunk().copied().unwrap_or_default();
    Ok(u128::from_be_bytes(first))
}

/// An authority with its key.
pub struct Authority {
    cert: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// When its own certificate ends.
    until_ms: u64,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of the cluster `name`, and its certificate as PEM.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Make`].
    pub fn new(name: &str) -> Result<(Self, String), Error> {
        if !(1..=MAX_NAME_BYTES).contains(&name.len()) || name.chars().any(char::is_control) {
            return Err(Error::Name);
        }
        Self::make(Some(name))
    }

    pub(super) fn make(name: Option<&str>) -> Result<(Self, String), Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(Error::Make)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(Error::Make)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        if let Some(name) = name {
            params
                .distinguished_name
                .push(DnType::OrganizationName, name);
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Validity::from_now(CA_LIFE).set(&mut params);
        let pem = params.self_signed(&key).map_err(Error::Make)?.pem();
        Ok((Self::load(&pem, &key.serialize_pem())?, pem))
    }

    /// The authority with the first certificate of `ca_pem` and the key `key_pem`.
    ///
    /// # Errors
    /// When they are not what they should be, or do not belong together.
    pub fn load(ca_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let cert = certificate::from_pem(ca_pem)?;
        if !certificate::is_authority(&cert) {
            return Err(Error::NoAuthority);
        }
        let key = KeyPair::from_pem(key_pem).map_err(|_| Error::OtherKey)?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(Error::Kind);
        }
        if key.subject_public_key_info() != certificate::parse(&cert)?.public_key().raw {
            return Err(Error::OtherKey);
        }
        Ok(Self {
            until_ms: certificate::expires(&cert)?,
            issuer: Issuer::from_ca_cert_der(&cert, key).map_err(Error::Make)?,
            cert,
        })
    }

    /// Its key as PEM: whoever has it is the authority.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The fingerprint of its certificate.
    pub fn fingerprint(&self) -> crate::core::hash::Hash {
        certificate::fingerprint(&self.cert)
    }

    /// Makes the certificate of `node` at `addr` for the key in `request`, as PEM. Of the request
    /// only the key counts. The certificate ends with that of the authority at the latest.
    ///
    /// # Errors
    /// [`Error::NoRequest`], [`Error::Kind`], [`Error::Signature`]; [`Error::Random`] and
    /// [`Error::Make`] for reasons on this side.
    pub fn sign(
        &self,
        request: &[u8],
        node: NodeId,
        addr: IpAddr,
        validity: Validity,
    ) -> Result<String, Error> {
        let key = key_of(request)?;
        let mut params = CertificateParams::new(vec![node_name(node)]).map_err(Error::Make)?;
        params.subject_alt_names.push(SanType::IpAddress(addr));
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, node_name(node));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let mut serial = [0; SERIAL_BYTES];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| Error::Random)?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        Validity {
            until_ms: validity.until_ms.min(self.until_ms),
            ..validity
        }
        .set(&mut params);
        let cert = params.signed_by(&key, &self.issuer).map_err(Error::Make)?;
        Ok(cert.pem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
    use x509_parser::extensions::GeneralName;

    fn node(n: u16) -> NodeId {
        NodeId::new(n).unwrap()
    }

    fn sign(authority: &Authority, request: &[u8]) -> Result<String, Error> {
        let addr = "10.0.0.7".parse().unwrap();
        authority.sign(request, node(7), addr, Validity::default())
    }

    #[test]
    fn a_key_has_a_name_that_nobody_else_can_take() {
        let (_, one) = request().unwrap();
        let (_, other) = request().unwrap();
        let name = name_of_key(&one).unwrap();
        assert_eq!(name_of_key(&one).unwrap(), name);
        assert_ne!(name_of_key(&other).unwrap(), name);
        // A request with the key of another is signed with none.
        let point = |request: &[u8]| {
            let (_, parsed) = X509CertificationRequest::from_der(request).unwrap();
            let key = parsed.certification_request_info.subject_pki;
            key.subject_public_key.data.to_vec()
        };
        let (own, stolen) = (point(&other), point(&one));
        let at = other.windows(own.len()).position(|w| w == own).unwrap();
        let mut forged = other.clone();
        forged[at..at + own.len()].copy_from_slice(&stolen);
        assert!(matches!(name_of_key(&forged), Err(Error::Signature)));
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let (authority, ca_pem) = Authority::new("here").unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut greedy = CertificateParams::new(vec!["n1.ssi".to_owned(), "*".to_owned()]).unwrap();
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let csr = greedy.serialize_request(&key).unwrap();
        let pem = sign(&authority, csr.der()).unwrap();
        let der = certificate::from_pem(&pem).unwrap();
        let cert = certificate::parse(&der).unwrap();
        assert!(!cert.is_ca());
        assert_eq!(cert.public_key().raw, key.subject_public_key_info());
        let names = cert.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [
                GeneralName::DNSName("n7.ssi"),
                GeneralName::IPAddress(&[10, 0, 0, 7])
            ]
        );
        let ca = certificate::from_pem(&ca_pem).unwrap();
        assert!(certificate::issued_by(&der, &ca));
        assert_eq!(certificate::expires(&der), Ok(authority.until_ms));
        let again = certificate::from_pem(&sign(&authority, csr.der()).unwrap()).unwrap();
        let again = certificate::parse(&again).unwrap();
        assert_ne!(again.raw_serial(), cert.raw_serial());
    }

    #[test]
    fn a_request_must_be_signed_and_of_the_right_kind() {
        let (authority, _) = Authority::new("here").unwrap();
        let (_, good) = request().unwrap();
        assert!(sign(&authority, &good).is_ok());
        for kind in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(kind).unwrap();
            let params = CertificateParams::new(Vec::new()).unwrap();
            let csr = params.serialize_request(&key).unwrap();
            assert!(matches!(sign(&authority, csr.der()), Err(Error::Kind)));
        }
        // The key of another in a request with our signature.
        let (_, other) = request().unwrap();
        let keys = [&good, &other].map(|r| key_of(r).unwrap().der_bytes().to_vec());
        let at = good.windows(65).position(|w| w == keys[0]).unwrap();
        let mut stolen = good.clone();
        stolen[at..at + 65].copy_from_slice(&keys[1]);
        assert!(matches!(sign(&authority, &stolen), Err(Error::Signature)));
        for wrong in [&b""[..], b"0", &vec![0x30; 5000], &good[..good.len() - 1]] {
            assert!(matches!(sign(&authority, wrong), Err(Error::NoRequest)));
        }
        let longer = [&good[..], b"0"].concat();
        assert!(matches!(sign(&authority, &longer), Err(Error::NoRequest)));
    }

    #[test]
    fn an_authority_is_what_it_was_after_it_is_read_again() {
        let (authority, pem) = Authority::new("here").unwrap();
        let (other, other_pem) = Authority::new("here").unwrap();
        let again = Authority::load(&pem, &authority.key_pem()).unwrap();
        assert_eq!(again.fingerprint(), authority.fingerprint());
        let key = other.key_pem();
        assert!(matches!(Authority::load(&pem, &key), Err(Error::OtherKey)));
        assert!(matches!(
            Authority::load("", &key),
            Err(Error::Certificate(_))
        ));
        let (_, csr) = request().unwrap();
        let leaf = sign(&other, &csr).unwrap();
        assert!(matches!(
            Authority::load(&leaf, &key),
            Err(Error::NoAuthority)
        ));
        assert!(Authority::load(&other_pem, "no key").is_err());
        let shown = format!("{other:?}");
        assert!(!shown.contains(key.lines().nth(1).unwrap()), "{shown}");
    }

    #[test]
    fn names_have_a_bound() {
        for wrong in ["", &"x".repeat(65), "a\nb"] {
            assert!(matches!(Authority::new(wrong), Err(Error::Name)));
        }
        assert!(Authority::new(&"x".repeat(64)).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn no_change_of_a_request_gets_another_key_signed(at in 0_usize..400, to: u8) {
            let (_, csr) = request().unwrap();
            let key = key_of(&csr).unwrap();
            let mut changed = csr.clone();
            let at = at % csr.len();
            changed[at] = to;
            // How lengths are written behind the signed part may differ, and nothing else.
            if let Ok(other) = key_of(&changed) {
                proptest::prop_assert_eq!(other, key);
            }
        }
    }
}
