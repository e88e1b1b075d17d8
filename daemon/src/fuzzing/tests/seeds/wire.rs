// SPDX-License-Identifier: MIT OR Apache-2.0

//! What modules say.

use ssi::wire::file::{self, Fd, File, FileKind, Op, Reply, What};
use ssi::wire::image::{self, Head, Mapping, Thread, Way};
use ssi::wire::task::{PageRequest, Pages};
use ssi::wire::{Header, Kind};
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::Seed;

fn frame(kind: Kind, seq: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let mut all = Header::new(kind, len, seq, 7).as_bytes().to_vec();
    all.extend_from_slice(payload);
    all
}

/// Two pages of zeros, one of data, one of a file.
fn pages() -> Vec<u8> {
    let mut all = vec![7; 4096];
    for head in [0x1000_u64, 0x2000, 0x3001, 0x5002] {
        all.extend_from_slice(&head.to_le_bytes());
    }
    let end = Pages {
        token: U64::new(9),
        count: U32::new(4),
        asked: U32::new(1),
    };
    all.extend_from_slice(end.as_bytes());
    all
}

fn files() -> Vec<u8> {
    let path = b"/etc/hostname";
    let mut found = File::new_zeroed();
    found.home = U16::new(1);
    found.kind = U16::new(FileKind::Regular as u16);
    found.id = U64::new(file::id_of(super::node(1), 5));
    found.mode = U32::new(FileKind::Regular.type_bits() | 0o644);
    found.path_bytes = U16::new(u16::try_from(path.len()).unwrap());
    let fd = |fd| Fd {
        fd: U32::new(fd),
        file: U16::new(0),
        flags: U16::new(0),
    };
    let head = file::Head {
        version: U32::new(file::VERSION),
        files: U32::new(1),
        fds: U32::new(2),
        ..file::Head::new_zeroed()
    };
    let mut all = head.as_bytes().to_vec();
    all.extend_from_slice(found.as_bytes());
    all.extend_from_slice(path);
    all.resize(all.len().next_multiple_of(8), 0);
    all.extend_from_slice([fd(0), fd(3)].as_bytes());
    assert!(file::Files::parse(&all).is_ok());
    all
}

fn image() -> Vec<u8> {
    let mapping = Mapping {
        start: 0x40_0000,
        end: 0x40_2000,
        way: Way::Paged as u32,
        prot: 3,
        ..Mapping::default()
    };
    let bodies = [
        (image::Kind::Exe, b"/bin/true".to_vec()),
        (image::Kind::Mapping, mapping.as_bytes().to_vec()),
        (
            image::Kind::Thread,
            Thread::new_zeroed().as_bytes().to_vec(),
        ),
        (image::Kind::Files, files()),
        (image::Kind::End, Vec::new()),
    ];
    let mut all = Vec::new();
    for (kind, body) in bodies {
        let head = Head {
            kind: kind as u32,
            len: u32::try_from(body.len()).unwrap(),
        };
        all.extend_from_slice(head.as_bytes());
        all.extend_from_slice(&body);
        all.resize(all.len().next_multiple_of(8), 0);
    }
    all
}

pub(super) fn all() -> Vec<Seed> {
    let mut write = Op::new(What::Write, 5);
    (write.req, write.len) = (U64::new(3), U32::new(4));
    let mut written = write.as_bytes().to_vec();
    written.extend_from_slice(b"data");
    let reply = Reply {
        req: U64::new(3),
        file: U64::new(0),
        result: I64::new(4),
        flags: U32::new(0),
        signal: U32::new(0),
    };
    let asked = PageRequest {
        token: U64::new(9),
        addr: U64::new(0x3000),
        count: U32::new(8),
        reserved: U32::new(0),
    };
    vec![
        ("wire", "pages", frame(Kind::Pages, 1, &pages())),
        (
            "wire",
            "asked",
            frame(Kind::PageRequest, 2, asked.as_bytes()),
        ),
        ("wire", "write", frame(Kind::FileOp, 3, &written)),
        ("wire", "reply", frame(Kind::FileReply, 4, reply.as_bytes())),
        ("wire", "image", frame(Kind::Image, 5, &image())),
        ("wire", "files", files()),
    ]
}
