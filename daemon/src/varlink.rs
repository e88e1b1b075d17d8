// SPDX-License-Identifier: MIT OR Apache-2.0

//! Varlink's framing: JSON objects that end with a zero byte, on a local socket.
//!
//! Written out because there is so little of it, and so that a length can be bounded and the
//! client needs no runtime.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest message a server takes: the longest value, as base 64.
pub const MAX_CALL_BYTES: usize = 96 * 1024;
/// Longest message a client takes: a list of all processes.
const MAX_REPLY_BYTES: usize = 64 * 1024 * 1024;
/// Read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// A message cannot be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    /// The socket failed.
    #[error("connection failed")]
    Io(#[source] std::io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The other side ended the connection.
    #[error("connection closed")]
    Closed,
    /// Not JSON, or not what is expected.
    #[error("not a message of this interface")]
    Json(#[from] serde_json::Error),
    /// Longer than it may be.
    #[error("message too long")]
    TooLong,
    /// The other side answered with this error.
    #[error("{name}")]
    Reply {
        /// Its full name.
        name: String,
        /// Its parameters.
        parameters: Value,
    },
}

/// A call.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Call {
    /// Interface and method.
    pub method: String,
    /// An object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// More than one reply is welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
    /// No reply is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oneway: Option<bool>,
}

/// A reply.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Reply {
    /// An object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Another follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub continues: Option<bool>,
    /// Interface and error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The bytes of a message.
///
/// # Errors
/// When it has no JSON.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, Error> {
    let mut out = serde_json::to_vec(message)?;
    out.push(0);
    Ok(out)
}

/// Collects bytes until messages are whole.
#[derive(Debug)]
pub struct Frames {
    arrived: Vec<u8>,
    searched: usize,
    max_bytes: usize,
}

impl Frames {
    /// For messages of at most `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            arrived: Vec::new(),
            searched: 0,
            max_bytes,
        }
    }

    /// Bytes have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.arrived.extend_from_slice(bytes);
    }

    /// The next message, if it is whole.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Json`].
    pub fn take<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        let end = self
            .arrived
            .iter()
            .skip(self.searched)
            .position(|b| *b == 0)
            .map(|p| p + self.searched);
        if end.unwrap_or(self.arrived.len()) > self.max_bytes {
            return Err(Error::TooLong);
        }
        let Some(end) = end else {
            self.searched = self.arrived.len();
            return Ok(None);
        };
        let message = serde_json::from_slice(&self.arrived[..end]);
        self.arrived.drain(..=end);
        self.searched = 0;
        Ok(Some(message?))
    }
}

/// A client that blocks.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    frames: Frames,
}

impl Client {
    /// Connects to the socket at `path`. With a timeout, no reply may take longer.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Io`].
    pub fn connect(path: &Path, timeout: Option<Duration>) -> Result<Self, Error> {
        let stream = UnixStream::connect(path).map_err(Error::Connect)?;
        stream.set_read_timeout(timeout).map_err(Error::Io)?;
        stream.set_write_timeout(timeout).map_err(Error::Io)?;
        Ok(Self {
            stream,
            frames: Frames::new(MAX_REPLY_BYTES),
        })
    }

    /// No reply may take longer from now on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), Error> {
        let timeout = Some(timeout.max(Duration::from_millis(1)));
        self.stream.set_read_timeout(timeout).map_err(Error::Io)
    }

    /// Calls a method; `each` gets every reply but the last, which is returned.
    ///
    /// # Errors
    /// [`Error::Reply`] when the method fails, and the rest of [`Error`].
    pub fn call<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        each: impl FnMut(T),
    ) -> Result<T, Error> {
        self.converse(method, parameters, Some(true), each)
    }

    /// Calls a method for one reply, also if it has more to say.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<T, Error> {
        self.converse(method, parameters, None, drop)
    }

    fn converse<T: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
        more: Option<bool>,
        mut each: impl FnMut(T),
    ) -> Result<T, Error> {
        let call = Call {
            method: method.to_owned(),
            parameters: Some(serde_json::to_value(parameters)?),
            more,
            oneway: None,
        };
        self.stream.write_all(&encode(&call)?).map_err(io)?;
        loop {
            let reply: Reply = self.receive()?;
            let parameters = reply
                .parameters
                .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
            if let Some(name) = reply.error {
                return Err(Error::Reply { name, parameters });
            }
            let value = serde_json::from_value(parameters)?;
            if reply.continues != Some(true) {
                return Ok(value);
            }
            each(value);
        }
    }

    fn receive(&mut self) -> Result<Reply, Error> {
        let mut chunk = [0; CHUNK_BYTES];
        loop {
            if let Some(reply) = self.frames.take()? {
                return Ok(reply);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => self.frames.push(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(io(e)),
            }
        }
    }
}

fn io(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Error::Timeout,
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => Error::Closed,
        _ => Error::Io(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_in_pieces() {
        let call = Call {
            method: "a.b.C".to_owned(),
            parameters: None,
            more: None,
            oneway: None,
        };
        let mut bytes = encode(&call).unwrap();
        assert_eq!(bytes, b"{\"method\":\"a.b.C\"}\0");
        bytes.extend(bytes.clone());
        let mut frames = Frames::new(100);
        let mut seen = 0;
        for b in bytes {
            frames.push(&[b]);
            while let Some(c) = frames.take::<Call>().unwrap() {
                assert_eq!(c.method, "a.b.C");
                seen += 1;
            }
        }
        assert_eq!(seen, 2);
    }

    #[test]
    fn too_long_is_refused_whether_whole_or_not() {
        let mut frames = Frames::new(10);
        frames.push(&[b' '; 11]);
        assert!(matches!(frames.take::<Call>(), Err(Error::TooLong)));
        let mut frames = Frames::new(10);
        frames.push(&[b' '; 11]);
        frames.push(&[0]);
        assert!(matches!(frames.take::<Call>(), Err(Error::TooLong)));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::new(64);
            frames.push(&bytes);
            while let Ok(Some(_)) = frames.take::<Call>() {}
        }
    }
}
