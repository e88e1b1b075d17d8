// SPDX-License-Identifier: MIT OR Apache-2.0

//! The cluster's own certificate authority and the certificates of its nodes.
//!
//! A node is who its certificate says: the name `nN.ssi` in it stands for node N.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use ssi::id::NodeId;
use time::{Duration, OffsetDateTime};

/// Certificate of the authority.
pub const CA_CERT: &str = "ca.pem";
/// Private key of the authority. Only the place that issues certificates needs it.
pub const CA_KEY: &str = "ca.key";
/// Certificate of a node.
pub const NODE_CERT: &str = "node.pem";
/// Private key of a node.
pub const NODE_KEY: &str = "node.key";

const CA_NAME: &str = "Unum cluster authority";
const CA_DAYS: i64 = 3650;
const NODE_DAYS: i64 = 3650;
/// Certificates are valid from this long ago: the clocks of nodes may be behind.
const BACKDATE_DAYS: i64 = 30;

/// A certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The authority's key, or what is asked for, cannot be used.
    #[error("cannot make the certificate")]
    Make(#[from] rcgen::Error),
}

/// The name of a node in its certificate.
pub fn node_name(node: NodeId) -> String {
    format!("{node}.ssi")
}

fn write(path: &Path, text: &str, mode: u32, new: bool) -> Result<(), Error> {
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).mode(mode);
        let mut file = if new {
            options.create_new(true).open(path)
        } else {
            options.create(true).truncate(true).open(path)
        }?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(text.as_bytes())
    };
    write().map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn directory(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })
}

fn validity(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::days(BACKDATE_DAYS);
    params.not_after = now + Duration::days(days);
}

fn authority() -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, CA_DAYS);
    Ok(params)
}

/// Makes an authority in `dir`, which must not hold one.
///
/// # Errors
/// See [`Error`].
pub fn init(dir: &Path) -> Result<(), Error> {
    directory(dir)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = authority()?.self_signed(&key)?;
    write(&dir.join(CA_KEY), &key.serialize_pem(), 0o600, true)?;
    write(&dir.join(CA_CERT), &cert.pem(), 0o644, true)
}

/// Makes the certificate of `node` with the authority in `dir`; writes it, its key and the
/// authority's certificate into `out`.
///
/// # Errors
/// See [`Error`].
pub fn issue(dir: &Path, node: NodeId, addr: IpAddr, out: &Path) -> Result<(), Error> {
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).map_err(|source| Error::File { path, source })
    };
    let ca_cert = read(CA_CERT)?;
    let ca = Issuer::new(authority()?, KeyPair::from_pem(&read(CA_KEY)?)?);

    let mut params = CertificateParams::new(vec![node_name(node)])?;
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
    validity(&mut params, NODE_DAYS);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let cert = params.signed_by(&key, &ca)?;

    directory(out)?;
    write(&out.join(NODE_KEY), &key.serialize_pem(), 0o600, false)?;
    write(&out.join(NODE_CERT), &cert.pem(), 0o644, false)?;
    write(&out.join(CA_CERT), &ca_cert, 0o644, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_private_and_an_authority_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca");
        init(&ca).unwrap();
        assert!(init(&ca).is_err());
        let out = dir.path().join("n1");
        let addr = "10.0.0.1".parse().unwrap();
        issue(&ca, NodeId::new(1).unwrap(), addr, &out).unwrap();
        issue(&ca, NodeId::new(1).unwrap(), addr, &out).unwrap();
        for (path, mode) in [
            (ca.join(CA_KEY), 0o600),
            (out.join(NODE_KEY), 0o600),
            (out.join(NODE_CERT), 0o644),
        ] {
            assert_eq!(
                path.metadata().unwrap().permissions().mode() & 0o777,
                mode,
                "{path:?}"
            );
        }
        assert_eq!(
            std::fs::read(ca.join(CA_CERT)).unwrap(),
            std::fs::read(out.join(CA_CERT)).unwrap()
        );
    }
}
