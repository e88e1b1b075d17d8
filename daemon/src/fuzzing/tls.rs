// SPDX-License-Identifier: MIT OR Apache-2.0

//! TLS before anybody has proved anything.

use std::sync::{Arc, OnceLock};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;

use super::{credentials, node};
use crate::session::{Engine, Tls};
use crate::tls::{self, Identity, Revoked};

/// Longest exchange: a handshake has three flights.
const MAX_FLIGHTS: usize = 8;
/// More does not wait for a side that has not shaken hands.
const MAX_WAITING_BYTES: usize = 256 * 1024;

/// The first byte says who is attacked (1: the one that connects) and how: 0, the rest are the bytes
/// that arrive, in two parts; 2, the rest are changes to what two honest sides say, each a position in
/// two bytes and what is added to the byte there. Nobody is taken for somebody else.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let Some((how, data)) = data.split_first() else {
        return;
    };
    let (mut client, mut server) = (connecting(), accepting());
    let at_client = how & 1 != 0;
    if how & 2 == 0 {
        let attacked = if at_client { &mut client } else { &mut server };
        let (one, two) = data.split_at(data.len() / 2);
        for part in [one, two] {
            attacked.incoming.extend_from_slice(part);
            if attacked.advance().is_err() {
                return;
            }
            assert!(attacked.incoming.len() + attacked.outgoing.len() <= MAX_WAITING_BYTES);
        }
        assert!(attacked.is_handshaking() && attacked.plain.is_empty());
        return;
    }
    let mut changes = data.chunks_exact(3);
    for _ in 0..MAX_FLIGHTS {
        let (went, mut there) = (client.advance(), std::mem::take(&mut client.outgoing));
        if !at_client {
            change(&mut there, &mut changes);
        }
        server.incoming.append(&mut there);
        let (came, mut back) = (server.advance(), std::mem::take(&mut server.outgoing));
        if at_client {
            change(&mut back, &mut changes);
        }
        client.incoming.append(&mut back);
        if went.is_err() || came.is_err() {
            // Nobody goes on then.
            return;
        }
        if client.incoming.is_empty() {
            break;
        }
    }
    if !server.is_handshaking() {
        assert!(
            server
                .peer_certificate()
                .is_some_and(|c| tls::is_of(c, node(1)))
        );
    }
    if !client.is_handshaking() {
        assert!(
            client
                .peer_certificate()
                .is_some_and(|c| tls::is_of(c, node(2)))
        );
    }
}

/// Makes the next change to a flight.
fn change<'a>(flight: &mut [u8], changes: &mut impl Iterator<Item = &'a [u8]>) {
    if flight.is_empty() {
        return;
    }
    if let Some([high, low, add]) = changes.next() {
        let at = usize::from(u16::from_be_bytes([*high, *low])) % flight.len();
        flight[at] = flight[at].wrapping_add(*add);
    }
}

/// Nodes 1 and 2.
fn identities() -> &'static [Identity; 2] {
    static IDENTITIES: OnceLock<[Identity; 2]> = OnceLock::new();
    IDENTITIES.get_or_init(|| {
        [1, 2].map(|n| Identity::of(node(n), &credentials(n), Revoked::new()).expect("an identity"))
    })
}

pub(super) fn connecting() -> Engine {
    let config = Arc::clone(&identities()[0].client);
    let tls = UnbufferedClientConnection::new(config, tls::server_name(node(2)));
    Engine::new(Tls::Client(Box::new(tls.expect("a connection"))))
}

pub(super) fn accepting() -> Engine {
    let config = Arc::clone(&identities()[1].server);
    let tls = UnbufferedServerConnection::new(config);
    Engine::new(Tls::Server(Box::new(tls.expect("a connection"))))
}
