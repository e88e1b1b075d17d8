// SPDX-License-Identifier: MIT OR Apache-2.0

//! Who is believed: certificates of the cluster's authorities, but for those that were revoked;
//! and, by a machine that is not yet in the cluster, the authority whose hash it was given.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerMisbehaved,
    RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{node_of, server_name};
use crate::core::hash::Hash;
use crate::pki::certificate::is_authority;
use crate::pki::{CaHash, fingerprint};

/// Fingerprints of certificates that are not believed any more.
pub type Revoked = BTreeSet<Hash>;

/// Refuses what is revoked, and leaves the rest to another.
#[derive(Debug)]
pub(super) struct Revoking<V: ?Sized> {
    pub(super) revoked: Revoked,
    pub(super) inner: Arc<V>,
}

impl<V: ?Sized> Revoking<V> {
    fn check(&self, cert: &CertificateDer<'_>) -> Result<(), Error> {
        if self.revoked.contains(&fingerprint(cert)) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
}

/// Signatures of TLS 1.2, which no configuration of ours speaks.
fn tls12() -> Error {
    PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()
}

impl ServerCertVerifier for Revoking<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )?;
        self.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Revoking<dyn ClientCertVerifier> {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .inner
            .verify_client_cert(end_entity, intermediates, now)?;
        self.check(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Why whoever answers is not believed to be the cluster that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMeant {
    /// Only one certificate came, or none.
    #[error("whoever answers does not show the certificate of its authority")]
    NoAuthority,
    /// The hash is another.
    #[error("whoever answers belongs to another authority than the hash names")]
    OtherAuthority,
    /// What the authority certified is not a node.
    #[error("whoever answers is not a node")]
    NoNode,
}

impl From<NotMeant> for Error {
    fn from(why: NotMeant) -> Self {
        CertificateError::Other(OtherError(Arc::new(why))).into()
    }
}

/// Believes any node of the authority with a known hash.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pin: CaHash,
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let (ca, between) = intermediates.split_last().ok_or(NotMeant::NoAuthority)?;
        if CaHash::of(ca).map_err(|_| CertificateError::BadEncoding)? != self.pin {
            return Err(NotMeant::OtherAuthority.into());
        }
        // A root is not asked whether it may issue: this is the place to ask.
        if !is_authority(ca) {
            return Err(NotMeant::NoAuthority.into());
        }
        let node = node_of(end_entity).ok_or(NotMeant::NoNode)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, between, &server_name(node), ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
