// SPDX-License-Identifier: MIT OR Apache-2.0

//! Generic netlink: requests with one answer, and a stream of events.
//!
//! Every request has a socket of its own, so answers cannot be mixed up, a slow one holds up no
//! other, and what a request that timed out gets later reaches nobody.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

/// Bytes of a generic netlink header: command, version, two unused.
const GENL_HEADER_BYTES: usize = 4;
/// Family, version and command that ask for a family.
const CONTROL_FAMILY: u16 = 16;
const CONTROL_VERSION: u8 = 2;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const FAMILY_GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;

/// Room for answers of one request.
const ANSWER_BYTES: usize = 256 * 1024;
/// Room for events that wait to be read.
const EVENT_BYTES: usize = 1024 * 1024;

/// A request was not answered as it should.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No family has this name.
    #[error("the kernel has no generic netlink family `{0}`")]
    NoFamily(String),
    /// The family lacks the group of events.
    #[error("the family `{family}` has no group `{group}`")]
    NoGroup {
        /// The family.
        family: String,
        /// The group.
        group: String,
    },
    /// The other side answered with this error.
    #[error("{0}")]
    Errno(io::Error),
    /// The socket failed.
    #[error("netlink socket failed")]
    Socket(#[source] io::Error),
    /// No answer in time.
    #[error("no answer in {} s", .0.as_secs())]
    Timeout(Duration),
    /// The answer is no netlink message.
    #[error("not a netlink message")]
    Decode(#[source] DecodeError),
}

/// A message of a generic netlink family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genl {
    family: u16,
    /// The family's command.
    pub cmd: u8,
    version: u8,
    /// Its attributes.
    pub payload: Vec<u8>,
}

impl NetlinkSerializable for Genl {
    fn message_type(&self) -> u16 {
        self.family
    }

    fn buffer_len(&self) -> usize {
        GENL_HEADER_BYTES + self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..GENL_HEADER_BYTES].copy_from_slice(&[self.cmd, self.version, 0, 0]);
        buffer[GENL_HEADER_BYTES..].copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Genl {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let (head, rest) = payload
            .split_first_chunk::<GENL_HEADER_BYTES>()
            .ok_or_else(|| DecodeError::from("no room for a generic netlink header"))?;
        Ok(Self {
            family: header.message_type,
            cmd: head[0],
            version: head[1],
            payload: rest.to_vec(),
        })
    }
}

/// A family and how to ask it.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    id: u16,
    version: u8,
    timeout: Duration,
}

/// All netlink messages in one datagram.
pub(crate) fn messages(mut datagram: &[u8]) -> Result<Vec<NetlinkMessage<Genl>>, Error> {
    let mut all = Vec::new();
    while !datagram.is_empty() {
        let length = NetlinkBuffer::new_checked(datagram)
            .map_err(Error::Decode)?
            .length();
        let length = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .next_multiple_of(4);
        all.push(NetlinkMessage::deserialize(datagram).map_err(Error::Decode)?);
        datagram = datagram.get(length..).unwrap_or_default();
    }
    Ok(all)
}

fn open(receive_bytes: usize) -> Result<Socket, Error> {
    let mut socket = Socket::new(NETLINK_GENERIC).map_err(Error::Socket)?;
    socket.bind_auto().map_err(Error::Socket)?;
    socket
        .set_rx_buf_sz(u32::try_from(receive_bytes).unwrap_or(u32::MAX))
        .map_err(Error::Socket)?;
    Ok(socket)
}

/// Sends one request and collects its answers until the kernel acknowledges it. Blocks.
fn transact(
    family: u16,
    version: u8,
    cmd: u8,
    payload: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<Genl>, Error> {
    const SEQUENCE: u32 = 1;
    let socket = open(ANSWER_BYTES)?;
    let seconds = i64::try_from(timeout.as_secs().max(1)).unwrap_or(i64::MAX);
    setsockopt(&socket, ReceiveTimeout, &TimeVal::new(seconds, 0))
        .map_err(|e| Error::Socket(e.into()))?;

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    header.sequence_number = SEQUENCE;
    let genl = Genl {
        family,
        cmd,
        version,
        payload,
    };
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(genl));
    message.finalize();
    let mut out = vec![0; message.buffer_len()];
    message.serialize(&mut out);
    socket
        .send_to(&out, &SocketAddr::new(0, 0), 0)
        .map_err(Error::Socket)?;

    let mut answers = Vec::new();
    loop {
        let (datagram, from) = match socket.recv_from_full() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(Error::Timeout(timeout)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            r => r.map_err(Error::Socket)?,
        };
        // Any process may send us a netlink message; only the kernel is listened to.
        if from.port_number() != 0 {
            continue;
        }
        for message in messages(&datagram)? {
            let (header, payload) = message.into_parts();
            if header.sequence_number != SEQUENCE {
                continue;
            }
            match payload {
                NetlinkPayload::InnerMessage(genl) => answers.push(genl),
                NetlinkPayload::Error(e) => match e.code {
                    None => return Ok(answers),
                    Some(code) => {
                        return Err(Error::Errno(io::Error::from_raw_os_error(
                            code.get().saturating_neg(),
                        )));
                    }
                },
                _ => {}
            }
        }
    }
}

impl Family {
    /// Asks the kernel for the family `name` and its multicast group `group`.
    ///
    /// # Errors
    /// [`Error::NoFamily`], [`Error::NoGroup`] and what the socket says.
    pub fn resolve(
        name: &str,
        group: &str,
        version: u8,
        timeout: Duration,
    ) -> Result<(Self, u32), Error> {
        let mut payload = attribute(FAMILY_NAME, name.as_bytes(), true);
        payload.resize(payload.len().next_multiple_of(4), 0);
        let answers = transact(
            CONTROL_FAMILY,
            CONTROL_VERSION,
            GET_FAMILY,
            payload,
            timeout,
        )
        .map_err(|e| match e {
            Error::Errno(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                Error::NoFamily(name.to_owned())
            }
            e => e,
        })?;
        let answer = answers
            .first()
            .ok_or_else(|| Error::NoFamily(name.to_owned()))?;
        let mut id = None;
        let mut group_id = None;
        for nla in NlasIterator::new(&answer.payload[..]) {
            let nla = nla.map_err(Error::Decode)?;
            match nla.kind() {
                FAMILY_ID => id = nla.value().try_into().ok().map(u16::from_ne_bytes),
                FAMILY_GROUPS => {
                    for entry in NlasIterator::new(nla.value()) {
                        group_id =
                            group_id.or(find_group(entry.map_err(Error::Decode)?.value(), group)?);
                    }
                }
                _ => {}
            }
        }
        let id = id.ok_or_else(|| Error::NoFamily(name.to_owned()))?;
        let group = group_id.ok_or_else(|| Error::NoGroup {
            family: name.to_owned(),
            group: group.to_owned(),
        })?;
        Ok((
            Self {
                id,
                version,
                timeout,
            },
            group,
        ))
    }

    /// Sends a request with these attributes; returns the attributes of its answer, empty when it
    /// was only acknowledged. Blocks.
    ///
    /// # Errors
    /// [`Error::Errno`] with what the module says, [`Error::Timeout`], and what the socket says.
    pub fn request(&self, cmd: u8, attributes: Vec<u8>) -> Result<Vec<u8>, Error> {
        let answers = transact(self.id, self.version, cmd, attributes, self.timeout)?;
        Ok(answers
            .into_iter()
            .find(|g| g.cmd == cmd && g.family == self.id)
            .map(|g| g.payload)
            .unwrap_or_default())
    }
}

fn attribute(kind: u16, value: &[u8], zero_terminated: bool) -> Vec<u8> {
    let length = 4 + value.len() + usize::from(zero_terminated);
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(length, 0);
    out
}

/// The id of the group in `entry`, if it has the name `wanted`.
fn find_group(entry: &[u8], wanted: &str) -> Result<Option<u32>, Error> {
    let mut id = None;
    let mut named = false;
    for nla in NlasIterator::new(entry) {
        let nla = nla.map_err(Error::Decode)?;
        match nla.kind() {
            GROUP_ID => id = nla.value().try_into().ok().map(u32::from_ne_bytes),
            GROUP_NAME => named = nla.value().strip_suffix(&[0]) == Some(wanted.as_bytes()),
            _ => {}
        }
    }
    Ok(id.filter(|_| named))
}

/// What came on the group of events.
#[derive(Debug)]
pub enum Heard {
    /// A message of the family.
    Message(Genl),
    /// Messages were lost: ask for the state again.
    Lost,
}

/// The group of events of a family.
#[derive(Debug)]
pub struct Events {
    socket: Socket,
    family: u16,
}

impl Events {
    /// Joins the group.
    ///
    /// # Errors
    /// What the socket says.
    pub fn join(family: &Family, group: u32) -> Result<Self, Error> {
        let socket = open(EVENT_BYTES)?;
        socket.add_membership(group).map_err(Error::Socket)?;
        // Without this the receive call waits for ever, which is what the thread is for.
        socket.set_non_blocking(false).map_err(Error::Socket)?;
        Ok(Self {
            socket,
            family: family.id,
        })
    }

    /// Waits for the next events. Blocks.
    ///
    /// # Errors
    /// What the socket says. Messages that make no sense are dropped, as if lost.
    pub fn wait(&mut self) -> Result<Vec<Heard>, Error> {
        let (datagram, from) = match self.socket.recv_from_full() {
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => return Ok(vec![Heard::Lost]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(Vec::new()),
            r => r.map_err(Error::Socket)?,
        };
        if from.port_number() != 0 {
            return Ok(Vec::new());
        }
        let Ok(messages) = messages(&datagram) else {
            return Ok(vec![Heard::Lost]);
        };
        Ok(messages
            .into_iter()
            .filter_map(|m| match m.payload {
                NetlinkPayload::InnerMessage(genl) if genl.family == self.family => {
                    Some(Heard::Message(genl))
                }
                NetlinkPayload::Overrun(_) => Some(Heard::Lost),
                _ => None,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_family_answers_and_a_missing_one_is_named() {
        let timeout = Duration::from_secs(5);
        let e = Family::resolve("no-such-family", "events", 1, timeout).unwrap_err();
        assert!(matches!(e, Error::NoFamily(_)), "{e:?}");
        let (family, group) =
            Family::resolve("nlctrl", "notify", CONTROL_VERSION, timeout).unwrap();
        assert_eq!(family.id, CONTROL_FAMILY);
        assert_ne!(group, 0);
        let mut name = attribute(FAMILY_NAME, b"nlctrl", true);
        name.resize(name.len().next_multiple_of(4), 0);
        assert!(matches!(family.request(99, name), Err(Error::Errno(_))));
        Events::join(&family, group).unwrap();
    }

    #[test]
    fn datagrams_that_make_no_sense_are_errors() {
        for n in 1..40 {
            assert!(messages(&vec![0xff; n]).is_err());
        }
        let mut zero_length = vec![0; 16];
        assert!(messages(&zero_length).is_err());
        zero_length[0] = 16;
        assert!(messages(&zero_length).is_err() || !messages(&zero_length).unwrap().is_empty());
    }
}
