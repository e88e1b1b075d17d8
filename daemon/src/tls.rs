// SPDX-License-Identifier: MIT OR Apache-2.0

//! How the daemons prove to each other who they are: TLS 1.3 only, both sides with a certificate
//! of the cluster's authority, key exchange X25519MLKEM768 and cipher AES-128-GCM pinned, so that
//! nothing weaker can be negotiated and the kernel can take every connection over.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use ssi::id::NodeId;

use crate::config::Config;
use crate::pki;

/// The application protocol both sides must name.
const PROTOCOL: &[u8] = b"unum/1";

/// This node cannot prove who it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read as what it should be.
    #[error("cannot read {path}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// Others could read the private key.
    #[error("{0} must be readable by its owner only: chmod 600 {0}")]
    Exposed(PathBuf),
    /// The certificate is another node's.
    #[error("the certificate is not that of {0}: issue one with `ssictl pki issue --node {n}`", n = .0.get())]
    OtherNode(NodeId),
    /// The files do not fit together.
    #[error("certificates do not fit together")]
    Fit(#[source] rustls::Error),
    /// The authority cannot be used to check clients.
    #[error("the authority's certificate is of no use")]
    Authority(#[source] rustls::server::VerifierBuilderError),
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

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768],
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        ..aws_lc_rs::default_provider()
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let all = CertificateDer::pem_file_iter(path)
        .map_err(read)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    if all.is_empty() {
        Err(read(rustls_pki_types::pem::Error::NoItemsFound))
    } else {
        Ok(all)
    }
}

impl Identity {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn load(config: &Config) -> Result<Self, Error> {
        let chain = certificates(&config.cert)?;
        let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|source| Error::Read {
            path: config.key.clone(),
            source,
        })?;
        if config
            .key
            .metadata()
            .is_ok_and(|m| m.permissions().mode() & 0o077 != 0)
        {
            return Err(Error::Exposed(config.key.clone()));
        }
        let mut roots = RootCertStore::empty();
        for cert in certificates(&config.ca)? {
            roots.add(cert).map_err(Error::Fit)?;
        }
        if !chain.first().is_some_and(|c| is_of(c, config.node)) {
            return Err(Error::OtherNode(config.node));
        }
        Self::new(Arc::new(roots), chain, key)
    }

    fn new(
        roots: Arc<RootCertStore>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, Error> {
        let provider = provider();
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Fit)?
            .with_root_certificates(Arc::clone(&roots))
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(Error::Fit)?;
        client.enable_secret_extraction = true;
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];

        let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(Error::Authority)?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(Error::Fit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(Error::Fit)?;
        server.enable_secret_extraction = true;
        // A ticket would be a record after the handshake that no one reads once the kernel has the
        // connection.
        server.send_tls13_tickets = 0;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }
}

/// A cluster's authority and the identities of its nodes, for tests.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    pub(crate) struct Authority {
        pub(crate) dir: tempfile::TempDir,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            pki::init(&dir.path().join("ca")).unwrap();
            Self { dir }
        }

        /// Configuration of node `node` of a cluster of `addrs.len()` nodes, certificate included.
        pub(crate) fn config(&self, node: u16, addrs: &[std::net::SocketAddr]) -> Config {
            let id = NodeId::new(node).unwrap();
            let out = self.dir.path().join(id.to_string());
            pki::issue(
                &self.dir.path().join("ca"),
                id,
                "127.0.0.1".parse().unwrap(),
                &out,
            )
            .unwrap();
            let mut text = format!(
                "node = {node}\npeer_dead_after_s = 3\nsocket = \"{d}/socket\"\naudit = \"{d}/audit\"\nca = \"{d}/ca.pem\"\ncert = \"{d}/node.pem\"\nkey = \"{d}/node.key\"\n",
                d = out.display()
            );
            for (i, addr) in addrs.iter().enumerate() {
                text += &format!("[[nodes]]\nid = {}\naddr = \"{addr}\"\n", i + 1);
            }
            Config::parse(Path::new("test"), &text).unwrap()
        }

        pub(crate) fn identity(&self, node: u16) -> Identity {
            let addrs: Vec<_> = (1..=node.max(2))
                .map(|n| std::net::SocketAddr::from(([127, 0, 0, 1], n)))
                .collect();
            Identity::load(&self.config(node, &addrs)).unwrap()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_of_one_node() {
        let authority = testing::Authority::new();
        authority.identity(2);
        let cert = certificates(&authority.dir.path().join("n2/node.pem"))
            .unwrap()
            .remove(0);
        assert!(is_of(&cert, NodeId::new(2).unwrap()));
        assert!(!is_of(&cert, NodeId::new(1).unwrap()));
        assert!(!is_of(&cert, NodeId::new(22).unwrap()));
    }

    #[test]
    fn wrong_files_are_refused() {
        let authority = testing::Authority::new();
        let addrs = [
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.1:2".parse().unwrap(),
        ];
        let good = authority.config(1, &addrs);
        let other = authority.config(2, &addrs);
        let with = |cert: &Path, key: &Path| Config {
            cert: cert.to_owned(),
            key: key.to_owned(),
            ..good.clone()
        };
        assert!(Identity::load(&good).is_ok());
        assert!(matches!(
            Identity::load(&with(&other.cert, &other.key)),
            Err(Error::OtherNode(_))
        ));
        assert!(matches!(
            Identity::load(&with(&good.cert, &other.key)),
            Err(Error::Fit(_))
        ));
        assert!(matches!(
            Identity::load(&with(&good.key, &good.key)),
            Err(Error::Read { .. })
        ));
        std::fs::set_permissions(&good.key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Identity::load(&good), Err(Error::Exposed(_))));
    }
}
