// SPDX-License-Identifier: GPL-2.0-only

//! Memory of user tasks: park areas, mappings, pages that are still elsewhere.

use crate::pager::{Found, Pager};
use crate::puppet;
use core::ptr::NonNull;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::{Arc, ArcBorrow};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// One mapping as the kernel has it; see shim/task.h.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub pgoff: u64,
    pub flags: u64,
    pub ino: u64,
    pub major: u32,
    pub minor: u32,
    pub has_anon: u32,
    pub special: u32,
    pub path_offset: u32,
    pub path_len: u32,
    pub file_key: u64,
    pub file_refs: u32,
    pub file_vmas: u32,
}
const _: () = assert!(size_of::<Vma>() == 80);

type RawMm = bindings::mm_struct;
type RawFile = bindings::file;

#[allow(
    improper_ctypes,
    reason = "only pointers to them cross, and their layout is bindgen's"
)]
unsafe extern "C" {
    fn ssi_mm_init() -> c_int;
    fn ssi_mm_exit();
    fn ssi_area_map(at: u64, slots_bytes: u64) -> c_long;
    fn ssi_unmap(start: u64, len: u64) -> c_long;
    fn ssi_vmas(mm: *mut RawMm, v: *mut Vma, max: c_int, paths: *mut u8, paths_len: u32) -> c_int;
    fn ssi_exe_path(
        mm: *mut RawMm,
        buf: *mut u8,
        len: c_int,
        major: *mut u32,
        minor: *mut u32,
        ino: *mut u64,
    ) -> c_int;
    fn ssi_page_read(
        mm: *mut RawMm,
        addr: u64,
        to: *mut c_void,
        file_is_known: c_int,
        nowait: c_int,
    ) -> c_int;
    fn ssi_page_new(old: *mut bindings::page, from: *const c_void) -> *mut bindings::page;
    fn ssi_page_get(p: *mut bindings::page);
    fn ssi_page_put(p: *mut bindings::page);
    fn ssi_page_is_zero(p: *const c_void) -> c_int;
    fn ssi_mm_unstable(mm: *mut RawMm) -> c_int;
    fn ssi_map(
        file: *mut RawFile,
        at: u64,
        len: u64,
        prot: u32,
        shared: u32,
        growsdown: u32,
        noreserve: u32,
        offset: u64,
    ) -> c_long;
    fn ssi_open(path: *const u8, flags: c_int) -> *mut RawFile;
    fn ssi_file_put(f: *mut RawFile);
    fn ssi_write_forced(to: u64, from: *const c_void, len: u32) -> c_int;
    fn ssi_hook(start: u64, end: u64, pager: *mut c_void) -> c_int;
    fn ssi_unhook(mm: *mut RawMm, pager: *mut c_void) -> c_int;
    fn ssi_install(mm: *mut RawMm, addr: u64, count: c_int, pager: *mut c_void) -> c_int;
    fn ssi_give(
        mm: *mut RawMm,
        addr: u64,
        data: *const c_void,
        count: c_int,
        pager: *mut c_void,
    ) -> c_int;
    fn ssi_unmap_all(keep: u64, keep_end: u64) -> c_int;
    fn ssi_task_size() -> u64;
    fn ssi_mm_current_get() -> *mut RawMm;
    fn ssi_mm_of(t: *mut bindings::task_struct) -> *mut RawMm;
    fn ssi_mm_put(mm: *mut RawMm);
}

/// The control device and the pseudo file system, while it lives.
pub struct Device(());

impl Device {
    /// Makes both. There is one.
    pub fn new() -> Result<Self> {
        // SAFETY: Called once at load.
        to_result(unsafe { ssi_mm_init() })?;
        Ok(Self(()))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: Called once at unload.
        unsafe { ssi_mm_exit() }
    }
}

/// A memory that is held: its pages stay even if its last task ends.
pub struct Memory(NonNull<RawMm>);

// SAFETY: A memory may be used and put from any task.
unsafe impl Send for Memory {}
// SAFETY: All uses take the memory's own locks.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { ssi_mm_put(self.0.as_ptr()) }
    }
}

impl Memory {
    /// The caller's.
    pub fn current() -> Result<Self> {
        // SAFETY: The caller is a user task.
        NonNull::new(unsafe { ssi_mm_current_get() })
            .map(Self)
            .ok_or(EINVAL)
    }

    /// That of another task, if it still has one.
    pub fn of(t: &super::task::TaskRef) -> Option<Self> {
        // SAFETY: The task is referenced.
        NonNull::new(unsafe { ssi_mm_of(t.as_ptr()) }).map(Self)
    }

    /// All mappings but park areas, and the text their paths point into.
    pub fn vmas(&self) -> Result<(KVVec<Vma>, KVVec<u8>)> {
        let mut max = 256usize;
        loop {
            let mut v = KVVec::from_elem(Vma::default(), max, GFP_KERNEL)?;
            let bytes = max.checked_mul(128).ok_or(EOVERFLOW)?;
            let mut paths = KVVec::from_elem(0u8, bytes, GFP_KERNEL)?;
            // SAFETY: The buffers have the sizes given.
            let n = unsafe {
                ssi_vmas(
                    self.0.as_ptr(),
                    v.as_mut_ptr(),
                    max as c_int,
                    paths.as_mut_ptr(),
                    bytes as u32,
                )
            };
            if n < 0 {
                return Err(Error::from_errno(n));
            }
            if n as usize <= max {
                v.truncate(n as usize);
                return Ok((v, paths));
            }
            max = n as usize + 16;
        }
    }

    /// Path and identity (major, minor, inode) of the program's file.
    pub fn exe(&self) -> Result<(KVec<u8>, (u32, u32, u64))> {
        let mut buf = KVec::from_elem(0u8, PAGE, GFP_KERNEL)?;
        let mut id = (0, 0, 0);
        // SAFETY: The buffer has PAGE bytes.
        let n = unsafe {
            ssi_exe_path(
                self.0.as_ptr(),
                buf.as_mut_ptr(),
                PAGE as c_int,
                &mut id.0,
                &mut id.1,
                &mut id.2,
            )
        };
        if n < 0 {
            return Err(Error::from_errno(n));
        }
        buf.truncate(n as usize);
        Ok((buf, id))
    }

    /// Looks at a page, and appends it to `to` if it holds data. With `file_is_known`, pages that are
    /// the file's own are not copied. With `nowait`, does not sleep for the page or the memory's lock.
    ///
    /// # Errors
    /// `EAGAIN`: try again. `EFAULT`: the page is lost, or others are and this memory cannot be trusted any more.
    pub fn read(
        &self,
        addr: u64,
        to: &mut KVVec<u8>,
        file_is_known: bool,
        nowait: bool,
    ) -> Result<Content> {
        to.reserve(PAGE, GFP_KERNEL)?;
        let spare = to.spare_capacity_mut().as_mut_ptr();
        // SAFETY: There is room for a page.
        let n = unsafe {
            ssi_page_read(
                self.0.as_ptr(),
                addr,
                spare.cast(),
                file_is_known.into(),
                nowait.into(),
            )
        };
        // SAFETY: The memory is held.
        if unsafe { ssi_mm_unstable(self.0.as_ptr()) } != 0 {
            return Err(EFAULT);
        }
        match n {
            0 => Ok(Content::Zero),
            // Not where a file is mapped: there nothing means the file.
            // SAFETY: A page was written there.
            1 if !file_is_known && unsafe { ssi_page_is_zero(spare.cast()) } != 0 => {
                Ok(Content::Zero)
            }
            1 => {
                // SAFETY: The capacity has room for a page, and one was written there.
                unsafe { to.inc_len(PAGE) };
                Ok(Content::Data)
            }
            2 => Ok(Content::File),
            e => Err(Error::from_errno(e)),
        }
    }

    /// Brings up to `count` pages of `pager` from `addr` on in for good; their number. 0: no such
    /// mapping any more.
    pub fn install(&self, addr: u64, count: usize, pager: &Arc<Pager>) -> Result<usize> {
        let pager = Arc::as_ptr(pager).cast_mut().cast();
        // SAFETY: The pager is only compared and asked through its own reference.
        let n = unsafe { ssi_install(self.0.as_ptr(), addr, count as c_int, pager) };
        usize::try_from(n).map_err(|_| Error::from_errno(n))
    }

    /// Copies whole pages of data in for good, from `addr` on, where nothing is yet: as many as lie in one
    /// mapping of `pager` and go without waiting, for memory too. Their number.
    pub fn give(&self, addr: u64, data: &[u8], pager: &Pager) -> usize {
        let count = (data.len() / PAGE) as c_int;
        let pager = core::ptr::from_ref(pager).cast_mut().cast();
        // SAFETY: There are `count` pages of data; the pager is only compared.
        let n = unsafe { ssi_give(self.0.as_ptr(), addr, data.as_ptr().cast(), count, pager) };
        usize::try_from(n).unwrap_or(0)
    }

    /// Makes the mappings of `pager` ordinary ones.
    pub fn unhook(&self, pager: &Arc<Pager>) {
        // SAFETY: As in `install`.
        unsafe { ssi_unhook(self.0.as_ptr(), Arc::as_ptr(pager).cast_mut().cast()) };
    }
}

/// A page of data that came from elsewhere; clones share it. What it holds never changes: mappings
/// have it read-only, or a copy.
pub struct DataPage(NonNull<bindings::page>);

// SAFETY: Pages may be used and put from any task.
unsafe impl Send for DataPage {}
// SAFETY: As above.
unsafe impl Sync for DataPage {}

impl DataPage {
    /// A page with a copy of `data`: `old`, if nothing else uses it.
    pub fn new(old: Option<Self>, data: &[u8]) -> Result<Self> {
        if data.len() != PAGE {
            return Err(EINVAL);
        }
        let old = old.map_or(core::ptr::null_mut(), |p| {
            core::mem::ManuallyDrop::new(p).0.as_ptr()
        });
        // SAFETY: There is a page of data, and `old` is null or our reference.
        NonNull::new(unsafe { ssi_page_new(old, data.as_ptr().cast()) })
            .map(Self)
            .ok_or(ENOMEM)
    }
}

impl Clone for DataPage {
    fn clone(&self) -> Self {
        // SAFETY: We have a reference.
        unsafe { ssi_page_get(self.0.as_ptr()) };
        Self(self.0)
    }
}

impl Drop for DataPage {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { ssi_page_put(self.0.as_ptr()) }
    }
}

/// What a page holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing: zeros.
    Zero,
    /// Data of its own.
    Data,
    /// What the mapped file holds there.
    File,
}

fn address(r: c_long) -> Result<u64> {
    if r < 0 && r > -4096 {
        return Err(Error::from_errno(r as c_int));
    }
    Ok(r as u64)
}

/// Maps a park area into the caller's memory: anywhere for `at` 0. Returns its base.
pub fn map_area(at: u64, slots_bytes: u64) -> Result<u64> {
    // SAFETY: The caller is a user task.
    address(unsafe { ssi_area_map(at, slots_bytes) })
}

/// Unmaps a range of the caller's memory.
pub fn unmap(start: u64, len: u64) -> Result {
    // SAFETY: The caller is a user task.
    address(unsafe { ssi_unmap(start, len) }).map(|_| ())
}

/// Unmaps all of the caller's memory but a range and what the kernel mapped itself.
pub fn unmap_all(keep: u64, keep_end: u64) -> Result {
    // SAFETY: The caller is a user task.
    to_result(unsafe { ssi_unmap_all(keep, keep_end) })
}

/// First address that user mode cannot have.
pub fn task_size() -> u64 {
    // SAFETY: No preconditions.
    unsafe { ssi_task_size() }
}

/// An open file.
pub struct FileRef(NonNull<RawFile>);

// SAFETY: Files may be used and put from any task.
unsafe impl Send for FileRef {}
// SAFETY: As above.
unsafe impl Sync for FileRef {}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { ssi_file_put(self.0.as_ptr()) }
    }
}

impl FileRef {
    /// Takes over a reference.
    pub(super) fn from_raw(f: *mut RawFile) -> Option<Self> {
        NonNull::new(f).map(Self)
    }

    pub(super) fn as_ptr(&self) -> *mut RawFile {
        self.0.as_ptr()
    }

    /// Opens `path` with the caller's rights and `flags` of open(2).
    pub fn open(path: &[u8], flags: i32) -> Result<Self> {
        let mut p = KVec::with_capacity(path.len() + 1, GFP_KERNEL)?;
        p.extend_from_slice(path, GFP_KERNEL)?;
        p.push(0, GFP_KERNEL)?;
        // SAFETY: `p` ends in a zero.
        let f = unsafe { ssi_open(p.as_ptr(), flags) };
        if (f as isize) < 0 && (f as isize) > -4096 {
            return Err(Error::from_errno(f as isize as c_int));
        }
        Self::from_raw(f).ok_or(ENOENT)
    }
}

/// How a range is mapped.
#[derive(Clone, Copy, Default, Debug)]
#[allow(missing_docs)]
pub struct How {
    /// `PROT_` bits.
    pub prot: u32,
    pub shared: bool,
    pub growsdown: bool,
    pub noreserve: bool,
}

/// Maps exactly `[at, at + len)` in the caller's memory, where nothing is mapped yet.
pub fn map(file: Option<&FileRef>, at: u64, len: u64, how: How, offset: u64) -> Result {
    // SAFETY: The caller is a user task; the file is referenced.
    let a = address(unsafe {
        ssi_map(
            file.map_or(core::ptr::null_mut(), |f| f.as_ptr()),
            at,
            len,
            how.prot,
            how.shared.into(),
            how.growsdown.into(),
            how.noreserve.into(),
            offset,
        )
    })?;
    if a != at {
        let _ = unmap(a, len);
        return Err(EEXIST);
    }
    Ok(())
}

/// Writes to the caller's memory whatever its protection.
pub fn write_forced(to: u64, from: &[u8]) -> Result {
    // SAFETY: The kernel checks the range.
    to_result(unsafe { ssi_write_forced(to, from.as_ptr().cast(), from.len() as u32) })
}

/// Gives one private mapping of the caller to a pager.
pub fn hook(start: u64, end: u64, pager: &Arc<Pager>) -> Result {
    // SAFETY: The shim takes its own reference through ssi_rs_pager_get().
    to_result(unsafe { ssi_hook(start, end, Arc::as_ptr(pager).cast_mut().cast()) })
}

// What the shim calls.

#[no_mangle]
extern "C" fn ssi_rs_park() -> c_int {
    puppet::park() as c_int
}

#[no_mangle]
extern "C" fn ssi_rs_become(token: u64) -> c_long {
    match puppet::become_guest(token) {
        Ok(()) => 0,
        Err(e) => e.to_errno() as c_long,
    }
}

/// Pagers reach the shim as raw pointers of arcs.
fn borrow<'a>(pager: *mut c_void) -> ArcBorrow<'a, Pager> {
    // SAFETY: The shim passes only what ssi_hook() got, and holds a reference while it does.
    unsafe { ArcBorrow::from_raw(pager.cast::<Pager>()) }
}

#[no_mangle]
extern "C" fn ssi_rs_pager_lookup(
    pager: *mut c_void,
    addr: u64,
    page: *mut *mut bindings::page,
) -> c_int {
    match borrow(pager).lookup(addr) {
        Found::Zero => 0,
        Found::Data(p) => {
            // SAFETY: The shim gives room for the pointer, and takes the reference over.
            unsafe { *page = core::mem::ManuallyDrop::new(p).0.as_ptr() };
            1
        }
        Found::File => 2,
        Found::Absent => 3,
        Found::Rest => 4,
        Found::Lost => 5,
    }
}

#[no_mangle]
extern "C" fn ssi_rs_pager_fetch(pager: *mut c_void, addr: u64, end: u64, interruptible: c_int) {
    borrow(pager).fetch(addr, end, interruptible != 0);
}

#[no_mangle]
extern "C" fn ssi_rs_pager_get(pager: *mut c_void) {
    let a: Arc<Pager> = borrow(pager).into();
    core::mem::forget(a);
}

#[no_mangle]
extern "C" fn ssi_rs_pager_put(pager: *mut c_void) {
    // SAFETY: Pairs with ssi_rs_pager_get().
    drop(unsafe { Arc::from_raw(pager.cast::<Pager>().cast_const()) });
}

#[no_mangle]
extern "C" fn ssi_rs_pager_forget(pager: *mut c_void, start: u64, end: u64) {
    borrow(pager).forget(start, end);
}

#[allow(
    improper_ctypes,
    reason = "only pointers to them cross, and their layout is bindgen's"
)]
unsafe extern "C" {
    fn ssi_hugetlb_flag(flags: u64) -> c_int;
}

/// Whether the flags are those of a mapping of huge pages.
pub fn is_hugetlb(flags: u64) -> bool {
    // SAFETY: No preconditions.
    unsafe { ssi_hugetlb_flag(flags) != 0 }
}
