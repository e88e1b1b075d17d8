// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the daemons prove to each other who they are: TLS 1.3 only, both sides with a certificate
//! of the cluster's authority, key exchange X25519MLKEM768 and cipher AES-128-GCM pinned, so that
//! nothing weaker can be negotiated and the kernel can take every connection over.
//!
//! A machine that wants to join has no certificate yet. It names another application protocol, and
//! knows the cluster by the hash of its authority. [`peer_of`] tells the two kinds apart: that a
//! handshake went well does not say that the client is a node.

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use ssi::id::{MAX_NODE, NodeId};

use crate::pki::certificate::issued_by;
use crate::pki::{self, CaHash};
use crate::seat::Credentials;

mod verify;

pub use verify::{NotMeant, Revoked};
use verify::{Pinned, Revoking};

/// The application protocol of nodes.
pub const PROTOCOL: &[u8] = b"unum/1";
/// The application protocol of a machine that wants to become one.
pub const JOIN_PROTOCOL: &[u8] = b"unum-join/1";

/// This node cannot prove who it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text cannot be read as what it should be.
    #[error("{what} cannot be read")]
    Read {
        /// What it should be.
        what: &'static str,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The certificate is another node's.
    #[error("the certificate is not that of {0}")]
    OtherNode(NodeId),
    /// They do not fit together.
    #[error("certificates do not fit together")]
    Fit(#[source] rustls::Error),
    /// The authority cannot be used to check others.
    #[error("the authority's certificate is of no use")]
    Authority(#[source] rustls::server::VerifierBuilderError),
    /// None of the authorities made the certificate.
    #[error("the certificate is of no authority that is believed")]
    OtherAuthority,
}

/// Who this node is, for both sides of a handshake.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For connections it makes.
    pub client: Arc<ClientConfig>,
    /// For connections it accepts.
    pub server: Arc<ServerConfig>,
}

/// The name node `node` has in its certificate.
pub fn server_name(node: NodeId) -> ServerName<'static> {
    // The text is "n", a number and ".ssi": always a name.
    ServerName::try_from(pki::node_name(node)).unwrap_or(ServerName::IpAddress(
        std::net::Ipv4Addr::UNSPECIFIED.into(),
    ))
}

/// Whether `cert`, already checked against the authority, is that of `node`.
pub fn is_of(cert: &CertificateDer<'_>, node: NodeId) -> bool {
    ParsedCertificate::try_from(cert)
        .and_then(|c| verify_server_name(&c, &server_name(node)))
        .is_ok()
}

/// The node that `cert` names, whoever made it.
pub fn node_of(cert: &CertificateDer<'_>) -> Option<NodeId> {
    (1..=MAX_NODE)
        .filter_map(NodeId::new)
        .find(|node| is_of(cert, *node))
}

/// Who shook hands with us as a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer<'a> {
    /// A node of the cluster, with its certificate.
    Node(&'a CertificateDer<'static>),
    /// Somebody who wants to join, and may be anybody.
    Joiner,
}

/// A handshake went well and the client is still not to be talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A client that speaks as a node has to be one.
    #[error("a node without a certificate")]
    NoCertificate,
    /// A node has no need to join.
    #[error("whoever joins has no certificate")]
    Certificate,
    /// Neither protocol was named.
    #[error("another application protocol")]
    Protocol,
}

/// Who the client is, from the application protocol that was agreed on and the certificate that it
/// proved to own.
///
/// # Errors
/// [`Refused`] unless it is a node with a certificate, or a joiner without.
pub fn peer_of<'a>(
    protocol: Option<&[u8]>,
    cert: Option<&'a CertificateDer<'static>>,
) -> Result<Peer<'a>, Refused> {
    match (protocol, cert) {
        (Some(PROTOCOL), Some(cert)) => Ok(Peer::Node(cert)),
        (Some(PROTOCOL), None) => Err(Refused::NoCertificate),
        (Some(JOIN_PROTOCOL), None) => Ok(Peer::Joiner),
        (Some(JOIN_PROTOCOL), Some(_)) => Err(Refused::Certificate),
        _ => Err(Refused::Protocol),
    }
}

/// What a client of ours is like, whoever it is.
fn client(mut config: ClientConfig, protocol: &[u8]) -> Arc<ClientConfig> {
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![protocol.to_vec()];
    Arc::new(config)
}

/// For the connection of a machine that wants to join: it has no certificate, and believes any
/// node of the authority with the hash `pin`. The name it connects to does not matter. Certificates
/// that were revoked are not known to it.
///
/// # Errors
/// [`Error::Fit`], when the library cannot do what we need.
pub fn join_client(pin: CaHash) -> Result<Arc<ClientConfig>, Error> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Fit)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { pin, provider }))
        .with_no_client_auth();
    Ok(client(config, JOIN_PROTOCOL))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    })
}

fn certificates(text: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let all = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::Read { what, source })?;
    if all.is_empty() {
        let source = rustls_pki_types::pem::Error::NoItemsFound;
        Err(Error::Read { what, source })
    } else {
        Ok(all)
    }
}

/// The certificate of the node that has `credentials`.
///
/// # Errors
/// [`Error::Read`].
pub fn own_certificate(credentials: &Credentials) -> Result<CertificateDer<'static>, Error> {
    Ok(certificates(&credentials.node, "the node's certificate")?.remove(0))
}

impl Identity {
    /// That of the node `own` with `credentials`, which believes none of the certificates in
    /// `revoked`. There may be several authorities: each is believed.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn of(own: NodeId, credentials: &Credentials, revoked: Revoked) -> Result<Self, Error> {
        let chain = certificates(&credentials.node, "the node's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(credentials.node.as_bytes()).map_err(|source| {
            Error::Read {
                what: "the node's key",
                source,
            }
        })?;
        let authorities = certificates(&credentials.ca, "the authority's certificate")?;
        let mut roots = RootCertStore::empty();
        for cert in &authorities {
            roots.add(cert.clone()).map_err(Error::Fit)?;
        }
        let cert = chain.first().filter(|c| is_of(c, own));
        let cert = cert.ok_or(Error::OtherNode(own))?;
        let ca = authorities.into_iter().find(|ca| issued_by(cert, ca));
        let ca = ca.ok_or(Error::OtherAuthority)?;
        Self::new(provider(), Arc::new(roots), revoked, chain, ca, key)
    }

    fn new(
        provider: Arc<CryptoProvider>,
        roots: Arc<RootCertStore>,
        revoked: Revoked,
        chain: Vec<CertificateDer<'static>>,
        ca: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, Error> {
        let servers: Arc<dyn ServerCertVerifier> =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(Error::Authority)?;
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Fit)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Revoking {
                revoked: revoked.clone(),
                inner: servers,
            }))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(Error::Fit)?;
        config.enable_secret_extraction = true;
        let client = client(config, PROTOCOL);

        // Whoever wants to join has no certificate: see `peer_of`.
        let clients: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(Error::Authority)?;
        let mut shown = chain;
        if shown.last() != Some(&ca) {
            // By it somebody who wants to join knows us.
            shown.push(ca);
        }
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Fit)?
            .with_client_cert_verifier(Arc::new(Revoking {
                revoked,
                inner: clients,
            }))
            .with_single_cert(shown, key)
            .map_err(Error::Fit)?;
        server.enable_secret_extraction = true;
        // A ticket would be a record after the handshake that no one reads once the kernel has the
        // connection.
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![PROTOCOL.to_vec(), JOIN_PROTOCOL.to_vec()];
        Ok(Self {
            client,
            server: Arc::new(server),
        })
    }
}

/// A cluster's authority and the identities of its nodes, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) struct Authority {
        ca: pki::Authority,
        pub(crate) pem: String,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let (ca, pem) = pki::Authority::new("test").unwrap();
            Self { ca, pem }
        }

        pub(crate) fn credentials(&self, node: u16) -> Credentials {
            let (key, request) = pki::request().unwrap();
            let addr = "127.0.0.1".parse().unwrap();
            let node = NodeId::new(node).unwrap();
            let cert = self.ca.sign(&request, node, addr, pki::Validity::default());
            Credentials {
                ca: self.pem.clone(),
                node: key + &cert.unwrap(),
            }
        }

        pub(crate) fn identity(&self, node: u16) -> Identity {
            let credentials = self.credentials(node);
            Identity::of(NodeId::new(node).unwrap(), &credentials, Revoked::new()).unwrap()
        }
    }
}

#[cfg(test)]
mod tests;
