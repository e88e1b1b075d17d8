// SPDX-License-Identifier: MIT OR Apache-2.0

//! Turning a TLS connection of ours into one the kernel encrypts, without losing a byte.
//!
//! The connecting side sends its preface and then nothing until it has got one byte, which the
//! accepting side sends when its kernel has the keys. So whatever user space decrypted was the
//! preface, and everything after it goes through the kernel on both sides.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::session::{self, Session};

/// The byte that tells the connecting side to go on.
const GO: u8 = 0x67;

/// A connection cannot be given to the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It ended before.
    #[error(transparent)]
    Session(#[from] session::Error),
    /// The kernel has no TLS.
    #[error("the kernel has no TLS: load it with `modprobe tls`")]
    NoTls,
    /// The kernel does not take the keys.
    #[error("the kernel does not take the connection")]
    Kernel(#[source] Errno),
    /// A cipher that was not agreed on.
    #[error("a cipher the kernel is not meant to have")]
    Cipher,
    /// The connection failed.
    #[error("connection failed")]
    Io(#[from] io::Error),
    /// Something else than the byte that should have come.
    #[error("the peer does not follow the protocol")]
    Go,
}

fn crypto_info(
    (sequence, secrets): &(u64, ConnectionTrafficSecrets),
) -> Result<TlsCryptoInfo, Error> {
    let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
        return Err(Error::Cipher);
    };
    let (salt, iv) = iv.as_ref().split_first_chunk::<4>().ok_or(Error::Cipher)?;
    Ok(TlsCryptoInfo::Aes128Gcm(
        libc::tls12_crypto_info_aes_gcm_128 {
            info: libc::tls_crypto_info {
                version: libc::TLS_1_3_VERSION,
                cipher_type: libc::TLS_CIPHER_AES_GCM_128,
            },
            iv: iv.try_into().map_err(|_| Error::Cipher)?,
            key: key.as_ref().try_into().map_err(|_| Error::Cipher)?,
            salt: *salt,
            rec_seq: sequence.to_be_bytes(),
        },
    ))
}

fn install(stream: &TcpStream, secrets: &ExtractedSecrets) -> Result<(), Error> {
    let tx = crypto_info(&secrets.tx)?;
    let rx = crypto_info(&secrets.rx)?;
    setsockopt(stream, TcpUlp::default(), b"tls").map_err(|e| match e {
        Errno::ENOENT => Error::NoTls,
        e => Error::Kernel(e),
    })?;
    setsockopt(stream, TcpTlsTx, &tx).map_err(Error::Kernel)?;
    setsockopt(stream, TcpTlsRx, &rx).map_err(Error::Kernel)
}

fn into_kernel(session: Session) -> Result<TcpStream, Error> {
    let (stream, secrets) = session.into_kernel()?;
    install(&stream, &secrets)?;
    Ok(stream)
}

/// The socket alone, no longer watched by us, blocking.
fn bare(stream: TcpStream) -> Result<OwnedFd, Error> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// Waits for the go byte, and reads nothing behind it.
async fn wait_for_go(stream: &mut TcpStream) -> Result<(), Error> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    if byte[0] == GO {
        Ok(())
    } else {
        Err(Error::Go)
    }
}

/// The connecting side, its preface just sent.
///
/// # Errors
/// See [`Error`]; the connection is gone.
pub async fn connected(session: Session) -> Result<OwnedFd, Error> {
    connected_plain(into_kernel(session)?).await
}

/// The accepting side, the preface just received.
///
/// # Errors
/// See [`Error`]; the connection is gone.
pub async fn accepted(session: Session) -> Result<OwnedFd, Error> {
    accepted_plain(into_kernel(session)?).await
}

/// As [`connected`], for a connection that stays as it is.
///
/// # Errors
/// See [`Error`].
pub async fn connected_plain(mut stream: TcpStream) -> Result<OwnedFd, Error> {
    wait_for_go(&mut stream).await?;
    bare(stream)
}

/// As [`accepted`], for a connection that stays as it is.
///
/// # Errors
/// See [`Error`].
pub async fn accepted_plain(mut stream: TcpStream) -> Result<OwnedFd, Error> {
    stream.write_all(&[GO]).await?;
    bare(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msg::{Preface, Purpose};
    use crate::tls::{self, testing::Authority};
    use ssi::id::NodeId;
    use std::io::{Read, Write};
    use std::net::TcpStream as Blocking;
    use std::sync::Arc;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (a, b) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        (a.unwrap(), b.unwrap().0)
    }

    async fn hand_over() -> Result<(OwnedFd, OwnedFd), Error> {
        let authority = Authority::new();
        let (client, server) = (authority.identity(1), authority.identity(2));
        let (a, b) = pair().await;
        let name = tls::server_name(NodeId::new(2).unwrap());
        let connect = async {
            let mut s = Session::connect(a, Arc::clone(&client.client), name).await?;
            s.send(&Preface {
                node: 1,
                purpose: Purpose::LinkControl as i32,
                ..Preface::default()
            })
            .await?;
            connected(s).await
        };
        let accept = async {
            let mut s = Session::accept(b, Arc::clone(&server.server)).await?;
            s.receive::<Preface>().await?;
            let fd = accepted(s).await?;
            // Sent at once, perhaps before the other side has read the go byte: must not be lost.
            Blocking::from(fd.try_clone()?).write_all(b"first words")?;
            Ok(fd)
        };
        tokio::try_join!(connect, accept)
    }

    #[tokio::test]
    async fn nothing_is_lost_when_the_kernel_takes_over() {
        let (a, b) = match hand_over().await {
            Err(Error::NoTls) => {
                eprintln!("skipped: this kernel has no TLS");
                return;
            }
            r => r.unwrap(),
        };
        let (mut a, mut b) = (Blocking::from(a), Blocking::from(b));
        let mut first = [0; 11];
        a.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"first words");
        let large = vec![7; 300_000];
        let sent = large.clone();
        let writer = std::thread::spawn(move || a.write_all(&sent));
        let mut got = vec![0; large.len()];
        b.read_exact(&mut got).unwrap();
        writer.join().unwrap().unwrap();
        assert_eq!(got, large);
    }

    #[tokio::test]
    async fn without_tls_the_same_rule_holds() {
        let (a, b) = pair().await;
        let accept = async {
            let fd = accepted_plain(b).await.unwrap();
            Blocking::from(fd).write_all(b"frame").unwrap();
        };
        let (a, ()) = tokio::join!(connected_plain(a), accept);
        let mut frame = [0; 5];
        Blocking::from(a.unwrap()).read_exact(&mut frame).unwrap();
        assert_eq!(&frame, b"frame");
    }

    #[tokio::test]
    async fn another_byte_ends_the_connection() {
        let (a, mut b) = pair().await;
        b.write_all(b"?").await.unwrap();
        assert!(matches!(connected_plain(a).await, Err(Error::Go)));
    }
}
