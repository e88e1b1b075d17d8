// SPDX-License-Identifier: MIT OR Apache-2.0

//! Listening sockets that outlive the daemon.
//!
//! The service manager keeps them while ssid starts again, so that who connects meanwhile waits a moment and is
//! not refused. What it kept is used only if it is what the configuration still asks for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt::AcceptConn};
use sd_notify::NotifyState;
use tokio::net::{TcpListener, UnixListener};

use crate::sys;

/// Name of the socket for tools.
const TOOLS: &str = "tools";
/// Name of the socket for other daemons.
const PEERS: &str = "peers";

/// What the service manager has kept of an earlier run.
#[derive(Debug, Default)]
pub struct Sockets {
    kept: BTreeMap<String, OwnedFd>,
}

impl Sockets {
    /// Takes what this process was started with. To be called before anything else opens files.
    ///
    /// # Errors
    /// When the environment does not fit to the files this process has.
    pub fn inherited() -> io::Result<Self> {
        let kept = sys::inherited()?.into_iter().map(|(fd, name)| (name, fd));
        Ok(Self {
            kept: kept.collect(),
        })
    }

    /// The socket for tools, if it was kept and listens at `path`.
    pub fn tools(&mut self, path: &Path) -> Option<UnixListener> {
        self.take(TOOLS, |fd| {
            let listener = std::os::unix::net::UnixListener::from(fd);
            let is_there = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
            let fits = is_there && listener.local_addr()?.as_pathname() == Some(path);
            if !fits {
                return Ok(Err(listener.into()));
            }
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener).map(Ok)
        })
    }

    /// The socket for other daemons, if it was kept and listens at `addr`.
    pub fn peers(&mut self, addr: SocketAddr) -> Option<TcpListener> {
        self.take(PEERS, |fd| {
            let listener = std::net::TcpListener::from(fd);
            if listener.local_addr()? != addr {
                return Ok(Err(listener.into()));
            }
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).map(Ok)
        })
    }

    /// Makes a listener of what was kept as `name`, or gives it up if `fit` gives it back.
    fn take<L>(
        &mut self,
        name: &str,
        fit: impl FnOnce(OwnedFd) -> io::Result<Result<L, OwnedFd>>,
    ) -> Option<L> {
        let fd = self.kept.remove(name)?;
        let result = match getsockopt(&fd, AcceptConn) {
            Ok(true) => fit(fd),
            Ok(false) => Ok(Err(fd)),
            Err(e) => Err(e.into()),
        };
        match result {
            Ok(Ok(listener)) => {
                tracing::debug!(name, "goes on with a socket that was kept");
                return Some(listener);
            }
            Ok(Err(fd)) => {
                tracing::debug!(
                    name,
                    "a socket that was kept is another than the one wanted"
                );
                // The service manager still holds it; its address is free at once nevertheless.
                let _ = shutdown(fd.as_raw_fd(), Shutdown::Both);
            }
            Err(e) => tracing::warn!(name, "a socket that was kept is of no use: {e}"),
        }
        tell(
            &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
            &[],
        );
        None
    }
}

/// Has the socket for tools kept.
pub fn keep_tools(listener: &UnixListener) {
    keep(TOOLS, listener);
}

/// Has the socket for other daemons kept.
pub fn keep_peers(listener: &TcpListener) {
    keep(PEERS, listener);
}

/// Has the socket for other daemons kept no more: there are no others.
pub fn drop_peers() {
    tell(
        &[NotifyState::FdStoreRemove, NotifyState::FdName(PEERS)],
        &[],
    );
}

fn keep(name: &str, listener: &impl AsFd) {
    tell(
        &[NotifyState::FdStore, NotifyState::FdName(name)],
        &[listener.as_fd()],
    );
}

fn tell(states: &[NotifyState<'_>], fds: &[BorrowedFd<'_>]) {
    if let Err(e) = sd_notify::notify_with_fds(states, fds) {
        tracing::warn!("the service manager does not keep sockets: {e}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn kept(name: &str, fd: impl Into<OwnedFd>) -> Sockets {
        Sockets {
            kept: BTreeMap::from([(name.to_owned(), fd.into())]),
        }
    }

    #[tokio::test]
    async fn who_connected_meanwhile_is_served() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut sockets = kept(
            TOOLS,
            std::os::unix::net::UnixListener::bind(&path).unwrap(),
        );
        let _client = UnixStream::connect(&path).unwrap();
        let listener = sockets.tools(&path).unwrap();
        listener.accept().await.unwrap();
        assert!(sockets.tools(&path).is_none(), "it is there once");

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let mut sockets = kept(PEERS, listener);
        let _client = std::net::TcpStream::connect(addr).unwrap();
        sockets.peers(addr).unwrap().accept().await.unwrap();
    }

    #[tokio::test]
    async fn another_address_is_given_up_and_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bound = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let held = bound.try_clone().unwrap();
        let mut sockets = kept(TOOLS, bound);
        assert!(sockets.tools(&dir.path().join("other")).is_none());
        assert!(UnixStream::connect(&path).is_err(), "nobody listens there");
        drop(held);

        let bound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = bound.local_addr().unwrap();
        let any = SocketAddr::from(([0, 0, 0, 0], addr.port()));
        let held = bound.try_clone().unwrap();
        assert!(kept(PEERS, bound).peers(any).is_none());
        TcpListener::bind(any).await.unwrap();
        drop(held);
    }

    #[tokio::test]
    async fn what_is_no_listener_there_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let bound = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(kept(TOOLS, bound).tools(&path).is_none());

        let (one, _other) = UnixStream::pair().unwrap();
        assert!(kept(TOOLS, one).tools(&path).is_none());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(kept(TOOLS, file).tools(&path).is_none());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(kept(TOOLS, tcp).tools(&path).is_none());
    }
}
