// SPDX-License-Identifier: MIT OR Apache-2.0

//! What a machine that wants to join says to a node, once TLS stands.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};

use prost::Message;
use rustls::{ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;

use super::machine::{DONE_IN, Node};
use crate::msg::govern::{Admit, Hello};
use crate::msg::{self, Answer, Reply};
use crate::tls;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// All that the machine says. It shows no token that was given to anybody: it hears who it speaks with, and why it is not
/// let in, and nothing changes.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let mut rest = data.to_vec();
    let greeting = msg::decode::<Hello>(&mut rest).ok().flatten();
    let is_spoken = greeting.as_ref().is_some_and(|h| h.version == msg::VERSION);
    let asks = is_spoken && matches!(msg::decode::<Admit>(&mut rest), Ok(Some(_)));
    let (hello, reply) = Node::with(|node| {
        let before = node.agreed();
        let heard = talk(node, data, greeting.is_some(), asks);
        assert_eq!(node.agreed(), before);
        heard
    });
    assert!(hello.iter().all(|hello| hello.version == msg::VERSION));
    let refused = |reply: &Reply| matches!(reply.answer, Some(Answer::Failed(_)));
    assert!(reply.iter().all(refused));
    // Who says more may not hear it: what a node has not read when it closes its side makes the kernel of the other forget
    // what it has.
    if rest.is_empty() {
        assert_eq!(hello.is_some(), greeting.is_some());
        assert_eq!(reply.is_some(), asks);
    }
}

/// Says it all, hears the greeting and the reply if they are to be expected, and hangs up. Nothing else is heard.
fn talk(node: &Node, data: &[u8], greets: bool, asks: bool) -> (Option<Hello>, Option<Reply>) {
    let config = tls::join_client(node.ca_hash()).expect("a configuration");
    let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
    let client = ClientConnection::new(config, name).expect("a client");
    let addr = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), node.port);
    let socket = TcpStream::connect(addr).expect("a connection");
    socket.set_read_timeout(Some(DONE_IN)).expect("a time");
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        let (conn, socket) = (&mut stream.conn, &mut stream.sock);
        conn.complete_io(socket).expect("a node of the authority");
    }
    // The node may close its side before all is said.
    let _ = stream.write_all(data).and_then(|()| stream.flush());
    let mut heard = Vec::new();
    let hello = greets.then(|| next(&mut stream, &mut heard)).flatten();
    let reply = asks.then(|| next(&mut stream, &mut heard)).flatten();
    stream.conn.send_close_notify();
    let _ = stream.flush();
    let _ = stream.sock.shutdown(Shutdown::Write);
    while more(&mut stream, &mut heard) {}
    assert!(heard.is_empty());
    (hello, reply)
}

/// The next message, unless the node closes its side before.
fn next<M: Message + Default>(stream: &mut Stream, heard: &mut Vec<u8>) -> Option<M> {
    loop {
        if let Some(message) = msg::decode(heard).expect("a message") {
            return Some(message);
        }
        if !more(stream, heard) {
            return None;
        }
    }
}

/// Hears more, unless the node has closed its side.
fn more(stream: &mut Stream, heard: &mut Vec<u8>) -> bool {
    let mut some = [0; 4096];
    match stream.read(&mut some) {
        Ok(n) => {
            heard.extend_from_slice(&some[..n]);
            n > 0
        }
        Err(e) => {
            assert_ne!(e.kind(), std::io::ErrorKind::WouldBlock, "no end in time");
            false
        }
    }
}
