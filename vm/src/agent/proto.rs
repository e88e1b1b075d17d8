// SPDX-License-Identifier: MIT OR Apache-2.0

//! What goes over a port.
//!
//! ```text
//! host to guest:  0x00                     padding, skipped between frames
//!                 kind[1] size[2] payload  a frame, size little endian, at most HOST_MAX
//! guest to host:  nonce[16]                answer to a Hello
//!                 kind[1] size[2] payload  a frame, at most GUEST_MAX
//! ```
//!
//! A port outlives its clients, and a client may die in the middle of a frame. So every client begins with more
//! padding than a frame can hold, which completes whatever its predecessor left, and a `Hello` with a nonce of
//! its own; and it skips what the guest sends until it meets that nonce. Nothing depends on the guest noticing
//! that the client has changed.
//!
//! The guest always reads its port, because QEMU does not notice that a client has gone while it has bytes of his
//! that the guest does not take. So a client sends at most [`STDIN_MAX`] bytes of standard input that the guest
//! has not said to have been taken.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// Largest payload of a frame from the host; `vm/lib/channel.py` pads with more than this.
#[cfg(test)]
pub const HOST_MAX: usize = 4000;
/// Largest payload of a frame to the host.
pub const GUEST_MAX: usize = 32 * 1024;
/// Bytes of standard input under way.
pub const STDIN_MAX: usize = 256 << 10;
/// Length of the nonce in a `Hello`.
pub const NONCE: usize = 16;

/// A frame from the host.
#[derive(Debug, PartialEq, Eq)]
pub enum FromHost {
    /// A new client, with its nonce. Whatever ran for an earlier one is over.
    Hello([u8; NONCE]),
    /// A part of the request: strings that end in NUL.
    Request(Vec<u8>),
    /// The request is complete.
    Run,
    /// Standard input.
    Stdin(Vec<u8>),
    /// End of standard input.
    StdinEnd,
    /// The client's terminal has this size.
    Window { rows: u16, columns: u16 },
    /// Something no client of ours sends; skipped.
    Unknown,
}

/// Kinds of frames to the host.
#[derive(Clone, Copy)]
pub enum ToHost {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
    /// Exit status, one byte; the last frame of a session.
    Exit = 3,
    /// How many more bytes of standard input have been taken, four bytes, little endian.
    Taken = 4,
}

/// Appends a frame to `out`.
pub fn put(out: &mut Vec<u8>, kind: ToHost, payload: &[u8]) {
    for part in payload.chunks(GUEST_MAX) {
        let size = u16::try_from(part.len()).expect("GUEST_MAX fits in 16 bits");
        out.push(kind as u8);
        out.extend_from_slice(&size.to_le_bytes());
        out.extend_from_slice(part);
    }
}

/// Takes frames out of a byte stream.
#[derive(Default)]
pub struct Parser {
    bytes: Vec<u8>,
    taken: usize,
}

impl Parser {
    /// Adds bytes that came from the port.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame.
    pub fn next(&mut self) -> Option<FromHost> {
        let rest = &self.bytes[self.taken..];
        self.taken += rest.iter().take_while(|&&byte| byte == 0).count();
        let (head, rest) = self.bytes[self.taken..].split_first_chunk::<3>()?;
        let size = usize::from(u16::from_le_bytes([head[1], head[2]]));
        let payload = rest.get(..size)?;
        self.taken += head.len() + size;
        Some(match (head[0], payload) {
            (1, payload) => payload
                .try_into()
                .map_or(FromHost::Unknown, FromHost::Hello),
            (2, payload) => FromHost::Request(payload.to_vec()),
            (3, []) => FromHost::Run,
            (4, payload) => FromHost::Stdin(payload.to_vec()),
            (5, []) => FromHost::StdinEnd,
            (6, &[a, b, c, d]) => FromHost::Window {
                rows: u16::from_le_bytes([a, b]),
                columns: u16::from_le_bytes([c, d]),
            },
            _ => FromHost::Unknown,
        })
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a command: `exec`, then `""` or the value of TERM, then the command's words.
    Exec {
        term: Option<OsString>,
        words: Vec<OsString>,
    },
    /// Receive a file: `push`, its mode in octal, its path.
    Push { mode: u32, path: PathBuf },
}

impl Request {
    /// Decodes the strings of a request.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut strings = bytes.strip_suffix(b"\0")?.split(|&byte| byte == 0);
        let mut next = || {
            strings
                .next()
                .map(|string| OsString::from_vec(string.to_vec()))
        };
        match next()?.to_str()? {
            "exec" => {
                let term = next().filter(|term| !term.is_empty());
                let words: Vec<_> = std::iter::from_fn(next).collect();
                (!words.is_empty()).then_some(Self::Exec { term, words })
            }
            "push" => Some(Self::Push {
                mode: u32::from_str_radix(next()?.to_str()?, 8).ok()?,
                path: next()?.into(),
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u16::try_from(payload.len()).unwrap().to_le_bytes();
        [&[kind], &size[..], payload].concat()
    }

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let stream = [
            frame(2, b"exec\0"),
            frame(3, b""),
            vec![0; 5],
            frame(4, b"data"),
        ]
        .concat();
        let mut parser = Parser::default();
        let mut frames = Vec::new();
        for byte in stream {
            parser.feed(&[byte]);
            frames.extend(std::iter::from_fn(|| parser.next()));
        }
        let want = [
            FromHost::Request(b"exec\0".to_vec()),
            FromHost::Run,
            FromHost::Stdin(b"data".to_vec()),
        ];
        assert_eq!(frames, want);
    }

    #[test]
    fn a_new_client_is_heard_after_any_cut() {
        let old = frame(4, &[7; HOST_MAX]);
        let new = [vec![0; HOST_MAX + 8], frame(1, &[9; NONCE])].concat();
        for cut in 0..old.len() {
            let mut parser = Parser::default();
            parser.feed(&old[..cut]);
            parser.feed(&new);
            let last = std::iter::from_fn(|| parser.next()).last();
            assert_eq!(last, Some(FromHost::Hello([9; NONCE])), "cut at {cut}");
        }
    }

    #[test]
    fn requests() {
        assert_eq!(
            Request::decode(b"exec\0\0echo\0\0"),
            Some(Request::Exec {
                term: None,
                words: vec!["echo".into(), OsString::new()]
            })
        );
        assert_eq!(
            Request::decode(b"push\x00755\0/bin/x\0"),
            Some(Request::Push {
                mode: 0o755,
                path: "/bin/x".into()
            })
        );
        assert_eq!(Request::decode(b"exec\0\0"), None);
        assert_eq!(Request::decode(b"exec\0\0echo"), None);
    }
}
