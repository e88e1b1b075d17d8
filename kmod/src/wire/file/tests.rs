// SPDX-License-Identifier: GPL-2.0-only OR MIT

use super::*;
use zerocopy::IntoBytes;

fn file(kind: FileKind, path: &[u8]) -> File {
    let forward = kind.way() == Way::Forward;
    File {
        id: U64::new(if forward {
            id_of(NodeId::new(3).unwrap(), 7)
        } else {
            0
        }),
        pos: U64::new(0),
        home: U16::new(3),
        kind: U16::new(kind as u16),
        can: U16::new(3),
        path_bytes: U16::new(path.len() as u16),
        flags: U32::new(2),
        mode: U32::new(kind.type_bits() | 0o644),
        rdev_major: U32::new(0),
        rdev_minor: U32::new(0),
        uid: U32::new(1000),
        gid: U32::new(100),
    }
}

fn image(files: &[(File, &[u8])], fds: &[(u32, u16, u16)]) -> Vec<u8> {
    let mut v = Head {
        version: U32::new(VERSION),
        files: U32::new(files.len() as u32),
        fds: U32::new(fds.len() as u32),
        reserved: U32::new(0),
    }
    .as_bytes()
    .to_vec();
    for (f, path) in files {
        let end = v.len() + file_bytes(path.len());
        v.extend_from_slice(f.as_bytes());
        v.extend_from_slice(path);
        v.resize(end, 0);
    }
    for &(fd, file, flags) in fds {
        v.extend_from_slice(
            Fd {
                fd: U32::new(fd),
                file: U16::new(file),
                flags: U16::new(flags),
            }
            .as_bytes(),
        );
    }
    v
}

fn sample() -> Vec<u8> {
    image(
        &[
            (file(FileKind::Fifo, b"pipe:[9]"), b"pipe:[9]"),
            (file(FileKind::Directory, b"/tmp"), b"/tmp"),
        ],
        &[(0, 0, 0), (1, 0, 1), (7, 1, 0)],
    )
}

#[test]
fn files_and_descriptors_come_back_in_order() {
    let v = sample();
    let f = Files::parse(&v).unwrap();
    let paths: Vec<_> = f
        .files()
        .map(|(f, p)| (f.file_kind().unwrap(), p))
        .collect();
    assert_eq!(
        paths,
        [
            (FileKind::Fifo, &b"pipe:[9]"[..]),
            (FileKind::Directory, b"/tmp")
        ]
    );
    let fds: Vec<_> = f
        .fds()
        .iter()
        .map(|d| (d.fd.get(), d.file.get(), d.flags.get()))
        .collect();
    assert_eq!(fds, [(0, 0, 0), (1, 0, 1), (7, 1, 0)]);
}

#[test]
fn no_files_at_all_are_fine() {
    assert_eq!(Files::parse(&image(&[], &[])).unwrap().files().count(), 0);
}

#[test]
fn records_cut_at_any_byte_or_too_long_are_refused() {
    let mut v = sample();
    for n in 0..v.len() {
        assert!(Files::parse(&v[..n]).is_err(), "{n}");
    }
    v.push(0);
    assert!(Files::parse(&v).is_err());
}

#[test]
fn record_bytes_are_pinned() {
    let v = image(&[(file(FileKind::Regular, b"/a"), b"/a")], &[(5, 0, 1)]);
    assert_eq!(
        v,
        [
            1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // head
            7, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, // id, pos
            3, 0, 1, 0, 3, 0, 2, 0, 2, 0, 0, 0, 0xa4, 0x81, 0, 0, // home .. mode
            0, 0, 0, 0, 0, 0, 0, 0, 0xe8, 3, 0, 0, 100, 0, 0, 0, // rdev, uid, gid
            b'/', b'a', 0, 0, 0, 0, 0, 0, // path
            5, 0, 0, 0, 0, 0, 1, 0, // fd
        ]
    );
}

#[test]
fn numbers_that_mean_nothing_are_refused() {
    let good = file(FileKind::Regular, b"/a");
    let bad = |f: File, path: &[u8]| {
        assert_eq!(
            Files::parse(&image(&[(f, path)], &[])).err(),
            Some(Error::Value),
            "{f:?}"
        );
    };
    assert!(Files::parse(&image(&[(good, b"/a")], &[])).is_ok());
    bad(
        File {
            kind: U16::new(9),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            kind: U16::new(FileKind::Fifo as u16),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            home: U16::new(0),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            id: U64::new(0),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            can: U16::new(32),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            flags: U32::new(0o20_000),
            ..good
        },
        b"/a",
    );
    bad(
        File {
            rdev_major: U32::new(4096),
            ..good
        },
        b"/a",
    );
    bad(good, b"\0a");
    bad(
        File {
            path_bytes: U16::new(0),
            ..good
        },
        b"",
    );
    bad(file(FileKind::Directory, b"tmp"), b"tmp");
    bad(
        File {
            id: U64::new(good.id.get()),
            ..file(FileKind::Directory, b"/tmp")
        },
        b"/tmp",
    );
}

#[test]
fn descriptors_out_of_order_or_without_a_file_are_refused() {
    let f = || [(file(FileKind::Regular, b"/a"), &b"/a"[..])];
    for fds in [
        &[(1, 0, 0), (1, 0, 0)][..],
        &[(2, 0, 0), (1, 0, 0)],
        &[(0, 1, 0)],
        &[(MAX_FD + 1, 0, 0)],
        &[(0, 0, 2)],
    ] {
        assert_eq!(Files::parse(&image(&f(), fds)).err(), Some(Error::Value));
    }
    let many: Vec<_> = (0..=MAX_FDS as u32).map(|n| (n, 0, 0)).collect();
    assert_eq!(Files::parse(&image(&f(), &many)).err(), Some(Error::Value));
}

#[test]
fn numbers_tell_their_node() {
    let n = NodeId::new(31).unwrap();
    assert_eq!(node_of_id(id_of(n, u64::MAX)), Some(n));
    assert_eq!(node_of_id(5), None);
    assert_eq!(node_of_id(u64::MAX), None);
}

fn frame(what: What, len: usize, data: usize) -> Vec<u8> {
    let mut o = Op::new(what, 1);
    o.req = U64::new(u64::from(what.is_answered()));
    o.len = U32::new(len as u32);
    let mut v = o.as_bytes().to_vec();
    v.resize(v.len() + data, 0);
    v
}

fn with_arg(mut v: Vec<u8>, arg: u64) -> Vec<u8> {
    v[48..56].copy_from_slice(&arg.to_le_bytes());
    v
}

#[test]
fn operations_bring_exactly_their_data() {
    assert!(op(&frame(What::Read, MAX_DATA_BYTES, 0)).is_ok());
    assert!(op(&frame(What::Read, MAX_DATA_BYTES + 1, 0)).is_err());
    assert!(op(&frame(What::Read, 1, 1)).is_err());
    assert!(op(&frame(What::Write, 3, 3)).is_ok());
    assert!(op(&frame(What::Write, 3, 4)).is_err());
    assert!(op(&frame(What::Write, MAX_DATA_BYTES + 1, MAX_DATA_BYTES + 1)).is_err());
    assert!(op(&frame(What::Setattr, 0, 48)).is_ok());
    assert!(op(&frame(What::Setattr, 0, 47)).is_err());
    assert!(op(&with_arg(frame(What::Ioctl, 0, 36), 0x5402)).is_ok());
    assert!(op(&with_arg(frame(What::Ioctl, 0, 35), 0x5402)).is_err());
    assert!(op(&with_arg(frame(What::Ioctl, 0, 0), 0x5412)).is_err());
    assert!(op(&with_arg(frame(What::Hand, 0, 16), 2)).is_ok());
    assert!(op(&with_arg(frame(What::Hand, 0, 16), 0)).is_err());
    assert!(op(&with_arg(frame(What::Hand, 0, 15), 2)).is_err());
    assert!(op(&with_arg(frame(What::Hand, 0, 8 * (MAX_HANDED + 1)), 2)).is_err());
    assert!(op(&frame(What::Close, 0, 0)).is_ok());
    assert!(op(&frame(What::Close, 0, 1)).is_err());
}

#[test]
fn operations_cut_anywhere_or_without_meaning_are_refused() {
    let f = frame(What::Write, 5, 5);
    for n in 0..f.len() {
        assert!(op(&f[..n]).is_err(), "{n}");
    }
    let mut unanswered = f.clone();
    unanswered[..8].fill(0);
    assert_eq!(op(&unanswered).err(), Some(Error::Value));
    let mut req = f.clone();
    req[7] = 1;
    assert_eq!(op(&req).err(), Some(Error::Value));
    let mut what = f.clone();
    what[24] = 0;
    assert_eq!(op(&what).err(), Some(Error::Value));
    let mut offset = f;
    offset[40..48].copy_from_slice(&(-2i64).to_le_bytes());
    assert_eq!(op(&offset).err(), Some(Error::Value));
}

#[test]
fn operation_bytes_are_pinned() {
    let mut o = Op::new(What::Poll, 0x0102);
    o.req = U64::new(3);
    o.pid = U32::new(4);
    o.tid = U32::new(5);
    o.how = U16::new(Op::NOTIFY);
    o.flags = U32::new(flag::NONBLOCK);
    o.changed = U32::new(6);
    o.len = U32::new(7);
    o.arg = U64::new(8);
    assert_eq!(
        o.as_bytes(),
        [
            3, 0, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, // req, file
            4, 0, 0, 0, 5, 0, 0, 0, 3, 0, 1, 0, 0, 8, 0, 0, // pid .. flags
            6, 0, 0, 0, 7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff, // changed .. offset
            8, 0, 0, 0, 0, 0, 0, 0,
        ]
    );
}

#[test]
fn reply_bytes_are_pinned_and_checked() {
    let r = Reply {
        req: U64::new(1),
        file: U64::new(2),
        result: I64::new(-32),
        flags: U32::new(3),
        signal: U32::new(25),
    };
    let v = r.as_bytes();
    assert_eq!(
        v,
        [
            1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xff, 0xff, 3, 0, 0, 0, 25, 0, 0, 0
        ]
    );
    assert!(reply(v).is_ok());
    for n in 0..v.len() {
        assert!(reply(&v[..n]).is_err());
    }
    let mut long = v.to_vec();
    long.resize(32 + MAX_DATA_BYTES + 1, 0);
    assert_eq!(reply(&long).err(), Some(Error::Length));
    let odd = Reply {
        result: I64::new(-4096),
        ..r
    };
    assert_eq!(reply(odd.as_bytes()).err(), Some(Error::Value));
}

#[test]
fn what_comes_back_from_its_number() {
    for n in 0..=u16::MAX {
        if let Some(w) = What::from_u16(n) {
            assert_eq!(w as u16, n);
        }
        if let Some(k) = FileKind::from_u16(n) {
            assert_eq!(k as u16, n);
        }
    }
}

#[test]
fn ioctls_fit_their_limit() {
    for cmd in (0x5400..0x5500)
        .chain(0x402c_5400..0x402c_5500)
        .chain(0x802c_5400..0x802c_5500)
    {
        if let Some(i) = ioctl(cmd) {
            assert!(usize::from(i.input.max(i.output)) <= MAX_IOCTL_BYTES);
            assert!(!i.plain || i.input == 0 && i.output == 0);
            assert!(!i.query || i.input == 0);
        }
    }
    // TIOCSTI, TIOCSCTTY, TIOCNOTTY, TIOCCONS
    for cmd in [0x5412, 0x540e, 0x5422, 0x541d] {
        assert_eq!(ioctl(cmd), None);
    }
}

#[test]
fn kinds_are_told_apart() {
    let l = |mode, rdev| Look {
        mode,
        rdev,
        plain_io: true,
        ..Look::default()
    };
    assert_eq!(l(S_IFREG | 0o600, (0, 0)).kind(), Ok(FileKind::Regular));
    assert_eq!(
        Look {
            unlinked: true,
            ..l(S_IFREG, (0, 0))
        }
        .kind(),
        Ok(FileKind::Regular)
    );
    assert_eq!(l(S_IFIFO, (0, 0)).kind(), Ok(FileKind::Fifo));
    assert_eq!(
        Look {
            internal: true,
            ..l(S_IFIFO, (0, 0))
        }
        .kind(),
        Ok(FileKind::Fifo)
    );
    for rdev in [(4, 1), (5, 0), (5, 1), (136, 3), (143, 9)] {
        assert_eq!(l(S_IFCHR, rdev).kind(), Ok(FileKind::Tty));
    }
    for minor in [3, 5, 7, 8, 9] {
        assert_eq!(l(S_IFCHR, (1, minor)).kind(), Ok(FileKind::Device));
    }
    assert_eq!(l(S_IFDIR, (0, 0)).kind(), Ok(FileKind::Directory));
    assert_eq!(
        Look {
            path_only: true,
            ..l(S_IFDIR, (0, 0))
        }
        .kind(),
        Ok(FileKind::Directory)
    );
    for bad in [
        l(S_IFCHR, (5, 2)),
        l(S_IFCHR, (128, 0)),
        l(S_IFCHR, (1, 1)),
        l(S_IFCHR, (10, 200)),
        l(S_IFBLK, (8, 0)),
        l(S_IFSOCK, (0, 0)),
        l(0, (0, 0)),
        Look {
            anonymous: true,
            ..l(S_IFREG, (0, 0))
        },
        Look {
            internal: true,
            ..l(S_IFREG, (0, 0))
        },
        Look {
            unlinked: true,
            ..l(S_IFDIR, (0, 0))
        },
        Look {
            path_only: true,
            ..l(S_IFREG, (0, 0))
        },
        Look {
            plain_io: false,
            ..l(S_IFREG, (0, 0))
        },
    ] {
        assert!(bad.kind().is_err(), "{bad:?}");
    }
}
