// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the modules say to each other. In the kernel the very same files take it apart.

use ssi::wire::image::{self, Mapping, Records, Thread};
use ssi::wire::task::{MAX_PAGES, PageKind, pages};
use ssi::wire::{Class, Header, MAX_PAYLOAD_BYTES, file, split};

const PAGE_BYTES: usize = 4096;
/// The first address that user mode cannot have.
const TASK_SIZE: u64 = 0x7fff_ffff_f000;

/// Bytes as a frame, and what follows its header, or all of them if that is none, as everything that a frame may hold.
///
/// # Panics
/// When the bytes do harm, or what was found sound is not.
pub fn run(data: &[u8]) {
    let mut payload = data;
    if let Ok((header, rest)) = split::<Header>(data)
        && let Ok((kind, bytes)) = header.check()
    {
        assert!(bytes <= MAX_PAYLOAD_BYTES);
        assert_eq!(kind.numbered(), header.seq.get() != 0);
        payload = rest.get(..bytes).unwrap_or(rest);
    }
    for n in 0..4 {
        assert!(Class::from_u32(n).is_none_or(|class| class as u32 == n));
    }
    of_pages(payload);
    of_operations(payload);
    of_files(payload);
    of_image(payload);
}

fn of_pages(payload: &[u8]) {
    let Ok((frame, runs)) = pages(payload) else {
        return;
    };
    let (mut count, mut bytes) = (0, 0);
    for run in runs {
        assert!(run.count > 0 && run.addr % PAGE_BYTES as u64 == 0);
        let data = match run.kind {
            PageKind::Data => run.count * PAGE_BYTES,
            PageKind::Zero | PageKind::File => 0,
        };
        assert_eq!(run.data.len(), data);
        count += run.count;
        bytes += data;
    }
    assert_eq!(count, frame.count.get() as usize);
    assert!(count <= MAX_PAGES && bytes <= payload.len());
}

fn of_operations(payload: &[u8]) {
    if let Ok((op, what, data)) = file::op(payload) {
        assert_eq!(op.req.get() != 0, what.is_answered());
        assert!(data.len() <= file::MAX_DATA_BYTES);
        let _ = file::ids(data);
    }
    if let Ok((_, data)) = file::reply(payload) {
        assert!(data.len() <= file::MAX_DATA_BYTES);
    }
}

fn of_files(payload: &[u8]) {
    let Ok(files) = file::Files::parse(payload) else {
        return;
    };
    let mut count = 0;
    for (found, path) in files.files() {
        assert!(found.file_kind().is_some() && !path.contains(&0));
        count += 1;
    }
    let fds = files.fds();
    assert!(fds.windows(2).all(|w| w[0].fd.get() < w[1].fd.get()));
    assert!(fds.iter().all(|fd| usize::from(fd.file.get()) < count));
}

fn of_image(payload: &[u8]) {
    let mut records = Records::new(payload);
    let mut bytes = 0;
    while let Ok(Some((kind, body))) = records.next_record() {
        bytes += image::record_bytes(body.len());
        match kind {
            image::Kind::Files => of_files(body),
            image::Kind::Mapping => {
                if let Ok((mapping, _)) = image::fixed::<Mapping>(body)
                    && mapping.is_sound(TASK_SIZE)
                {
                    assert!(mapping.start < mapping.end && mapping.end <= TASK_SIZE);
                }
            }
            image::Kind::Thread => {
                if let Ok((thread, _)) = image::fixed::<Thread>(body)
                    && thread.is_sound(TASK_SIZE)
                {
                    assert!(thread.state.regs[image::reg::IP] < TASK_SIZE);
                }
            }
            _ => {}
        }
    }
    assert!(bytes <= payload.len());
}
