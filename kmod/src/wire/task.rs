// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! Frames about one process: its arrival, its end, its signals, its pages.

use super::Error;
use zerocopy::little_endian::{I32, U16, U32, U64};
use zerocopy::FromBytes;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Most pages in one [`Pages`] frame: with its heads it just fits into 128 KiB, as the kernel allocates powers of two.
pub const MAX_PAGES: usize = 31;
/// Most pages asked for by one [`PageRequest`].
pub const MAX_ASKED: usize = 512;
/// Largest image, all frames together.
pub const MAX_IMAGE_BYTES: u64 = 96 << 20;
/// Image bytes in one frame.
pub const CHUNK_BYTES: usize = 128 * 1024;

/// Start of [`super::Kind::Image`] and [`super::Kind::ImageMore`]; image bytes follow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Begin {
    /// Names the migration.
    pub token: U64,
    /// Bytes of the whole image.
    pub total_bytes: U64,
    /// Process id.
    pub pid: U32,
    /// Its home node.
    pub home: U16,
    /// Zero.
    pub reserved: U16,
}
const _: () = assert!(size_of::<Begin>() == 24);

/// A word about one migration or one process.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Verdict {
    /// Names the migration, 0 where there is none.
    pub token: U64,
    /// Process id.
    pub pid: U32,
    /// 0, or an errno (positive).
    pub errno: U32,
    /// What else there is to say: for Moved the new host's node id, for PagesEnd how often everything was sent.
    pub arg: U64,
}
const _: () = assert!(size_of::<Verdict>() == 24);

impl Verdict {
    /// A verdict without an error.
    pub fn new(token: u64, pid: u32) -> Self {
        Self {
            token: U64::new(token),
            pid: U32::new(pid),
            errno: U32::new(0),
            arg: U64::new(0),
        }
    }

    /// With an error.
    pub fn failed(mut self, errno: i32) -> Self {
        self.errno = U32::new(errno.unsigned_abs());
        self
    }

    /// With an argument.
    pub fn with(mut self, arg: u64) -> Self {
        self.arg = U64::new(arg);
        self
    }
}

/// A guest has ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Ended {
    /// Process id.
    pub pid: U32,
    /// Wait status.
    pub status: U32,
    /// What it has used: [`crate::wire::image::Usage`].
    pub usage: [u8; 80],
}

/// A signal for a process or one of its threads.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Signal {
    /// Process id.
    pub pid: U32,
    /// Thread id, 0 for the process.
    pub tid: U32,
    /// 1 to 64.
    pub signo: I32,
    /// `si_code`.
    pub code: I32,
    /// `si_errno`.
    pub err: I32,
    /// `si_pid`.
    pub sender: I32,
    /// `si_uid`.
    pub uid: U32,
    /// Zero.
    pub reserved: U32,
    /// `si_value`.
    pub value: U64,
}
const _: () = assert!(size_of::<Signal>() == 40);

/// A guest stopped by a signal that its home should stop by too.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Stopped {
    /// Process id.
    pub pid: U32,
    /// The stop signal.
    pub signo: U32,
}

/// Send these pages.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct PageRequest {
    /// Names the migration whose memory it is.
    pub token: U64,
    /// Address of the first page.
    pub addr: U64,
    /// Number of pages, at most [`MAX_ASKED`]. All of them are answered for.
    pub count: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<PageRequest>() == 24);

/// End of a frame of pages: the data of those that have some comes first, so that it lies on pages of
/// the receiver's memory, then `count` [`U64`] heads, then this. A head is the page's address with a
/// [`PageKind`] in its low bits.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Pages {
    /// Names the migration whose memory it is.
    pub token: U64,
    /// Number of pages, at most [`MAX_PAGES`].
    pub count: U32,
    /// 1: the answer to a request.
    pub asked: U32,
}
const _: () = assert!(size_of::<Pages>() == 16);

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum PageKind {
    /// Zeros; no data follows.
    Zero = 0,
    /// Data.
    Data = 1,
    /// What the mapped file holds; no data follows.
    File = 2,
}

impl PageKind {
    /// Splits a head into address and kind.
    pub fn split(head: u64) -> Option<(u64, Self)> {
        let kind = match head & 0xfff {
            0 => PageKind::Zero,
            1 => PageKind::Data,
            2 => PageKind::File,
            _ => return None,
        };
        Some((head & !0xfff, kind))
    }
}

/// The pages of a [`Pages`] frame, in order, as runs.
#[derive(Clone, Debug)]
pub struct PageRuns<'a> {
    heads: &'a [U64],
    data: &'a [u8],
}

/// Pages of one kind that follow each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRun<'a> {
    /// Address of the first.
    pub addr: u64,
    /// What each holds.
    pub kind: PageKind,
    /// Their number, at least 1.
    pub count: usize,
    /// `count` pages of data; empty unless it is that.
    pub data: &'a [u8],
}

/// Takes a frame of pages apart.
///
/// # Errors
/// [`Error::Length`] unless the frame is exactly as long as its heads say; [`Error::Value`].
pub fn pages(payload: &[u8]) -> Result<(&Pages, PageRuns<'_>), Error> {
    let (rest, p) = Pages::ref_from_suffix(payload).map_err(|_| Error::Length)?;
    let count = p.count.get() as usize;
    if count > MAX_PAGES {
        return Err(Error::Value);
    }
    let (data, heads) =
        <[U64]>::ref_from_suffix_with_elems(rest, count).map_err(|_| Error::Length)?;
    let mut bytes = 0;
    for h in heads {
        let (_, kind) = PageKind::split(h.get()).ok_or(Error::Value)?;
        if kind == PageKind::Data {
            bytes += PAGE_BYTES;
        }
    }
    if bytes != data.len() {
        return Err(Error::Length);
    }
    Ok((p, PageRuns { heads, data }))
}

impl<'a> Iterator for PageRuns<'a> {
    type Item = PageRun<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (addr, kind) = PageKind::split(self.heads.first()?.get())?;
        let head = |k: u64| Some(addr.checked_add(k * PAGE_BYTES as u64)? | kind as u64);
        let count = (0..)
            .zip(self.heads)
            .take_while(|(k, h)| head(*k) == Some(h.get()))
            .count();
        self.heads = self.heads.get(count..)?;
        let bytes = if kind == PageKind::Data {
            count * PAGE_BYTES
        } else {
            0
        };
        let (data, rest) = self.data.split_at_checked(bytes)?;
        self.data = rest;
        Some(PageRun {
            addr,
            kind,
            count,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    fn frame(heads: &[u64], data: usize) -> Vec<u8> {
        let p = Pages {
            token: U64::new(9),
            count: U32::new(heads.len() as u32),
            asked: U32::new(1),
        };
        let mut v = vec![7; data];
        for h in heads {
            v.extend_from_slice(&h.to_le_bytes());
        }
        v.extend_from_slice(p.as_bytes());
        v
    }

    #[test]
    fn pages_come_back_in_order() {
        let f = frame(
            &[0x1000, 0x2000, 0x3001, 0x5001, 0x6001, 0x7002],
            3 * PAGE_BYTES,
        );
        let (p, runs) = pages(&f).unwrap();
        assert_eq!(p.token.get(), 9);
        let v: Vec<_> = runs
            .map(|r| (r.addr, r.kind, r.count, r.data.len()))
            .collect();
        assert_eq!(
            v,
            [
                (0x1000, PageKind::Zero, 2, 0),
                (0x3000, PageKind::Data, 1, PAGE_BYTES),
                (0x5000, PageKind::Data, 2, 2 * PAGE_BYTES),
                (0x7000, PageKind::File, 1, 0)
            ]
        );
    }

    #[test]
    fn a_run_ends_where_addresses_do() {
        let last = !0xfff;
        let (f, runs) = (frame(&[last, 0], 0), 2);
        assert_eq!(pages(&f).unwrap().1.count(), runs);
    }

    #[test]
    fn a_frame_cut_anywhere_or_too_long_is_refused() {
        let f = frame(&[0x1000, 0x2001], PAGE_BYTES);
        for n in 0..f.len() {
            assert!(pages(&f[..n]).is_err());
        }
        assert!(pages(&frame(&[0x2001], PAGE_BYTES + 1)).is_err());
        assert!(pages(&frame(&[0x2003], 0)).is_err());
        assert!(pages(&frame(&[0; MAX_PAGES + 1], 0)).is_err());
    }
}
