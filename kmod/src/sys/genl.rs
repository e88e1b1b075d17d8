// SPDX-License-Identifier: GPL-2.0-only

//! The generic netlink family: requests in, answers and events out, as bytes.
//!
//! What the bytes mean is in [`crate::uapi`]; the kernel's own attribute policies are not used, so
//! that there is one decoder for both ends.

use crate::uapi;
use core::cell::UnsafeCell;
use core::ptr;
use kernel::bindings;
use kernel::error::to_result;
use kernel::prelude::*;

/// Commands are 1 to this.
const COMMANDS: usize = uapi::Cmd::Stat as usize;

const NLMSG_HEADER_BYTES: usize = 16;
const GENL_HEADER_BYTES: usize = 4;

#[repr(transparent)]
struct Shared<T>(T);
// SAFETY: Only used for tables that nobody writes.
unsafe impl<T> Sync for Shared<T> {}

#[repr(transparent)]
struct FamilyCell(UnsafeCell<bindings::genl_family>);
// SAFETY: Written by register() before it is registered, and by the kernel under its own lock.
unsafe impl Sync for FamilyCell {}

const fn operation(cmd: u8) -> bindings::genl_small_ops {
    bindings::genl_small_ops {
        doit: Some(doit),
        dumpit: None,
        cmd,
        internal_flags: 0,
        flags: bindings::GENL_ADMIN_PERM as u8,
        validate: 0,
    }
}

static OPERATIONS: Shared<[bindings::genl_small_ops; COMMANDS]> = {
    let mut all = [operation(0); COMMANDS];
    let mut i = 0;
    while i < COMMANDS {
        all[i] = operation(i as u8 + 1);
        i += 1;
    }
    Shared(all)
};

const fn name16(s: &str) -> [u8; 16] {
    let s = s.as_bytes();
    let mut a = [0; 16];
    let mut i = 0;
    while i < s.len() {
        a[i] = s[i];
        i += 1;
    }
    a
}

static GROUPS: Shared<[bindings::genl_multicast_group; 1]> =
    Shared([bindings::genl_multicast_group {
        name: name16(uapi::EVENTS),
        flags: 0,
    }]);

static FAMILY: FamilyCell = FamilyCell(UnsafeCell::new(pin_init::zeroed()));

/// The family, registered until this is dropped.
pub struct Registration(());

/// Registers the family. Requests go to [`crate::ctl::handle`] from here on.
///
/// # Errors
/// `EEXIST` when the name is taken; `ENOMEM`.
pub fn register(module: &'static ThisModule) -> Result<Registration> {
    // SAFETY: Called once, when the module loads: nobody else looks at the family yet.
    unsafe {
        let f = &mut *FAMILY.0.get();
        f.name = name16(uapi::FAMILY);
        f.version = uapi::VERSION.into();
        f.module = module.as_ptr();
        f.set_netnsok(0);
        f.set_parallel_ops(1);
        f.small_ops = (&raw const OPERATIONS).cast();
        f.n_small_ops = COMMANDS as u8;
        f.mcgrps = (&raw const GROUPS).cast();
        f.n_mcgrps = 1;
        // No command is checked by a policy of the kernel. (It would refuse all attributes of the
        // other kinds of operations, having no policy.)
        f.resv_start_op = COMMANDS as u8 + 1;
        to_result(bindings::genl_register_family(f))?;
    }
    Ok(Registration(()))
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: It is registered. This waits for requests that are being handled.
        unsafe { bindings::genl_unregister_family(FAMILY.0.get()) };
    }
}

/// A request of user space.
///
/// # Invariants
///
/// `info` is the argument of the handler that is running.
pub struct Request<'a> {
    info: &'a bindings::genl_info,
    cmd: u8,
    attributes: &'a [u8],
}

impl Request<'_> {
    /// Number of the command.
    pub fn command(&self) -> u8 {
        self.cmd
    }

    /// Its attributes, unchecked.
    pub fn attributes(&self) -> &[u8] {
        self.attributes
    }

    /// Answers with the same command and these attributes.
    ///
    /// # Errors
    /// `ENOMEM`; `EAGAIN` when the asker does not read.
    pub fn answer(&self, attributes: &[u8]) -> Result {
        let skb = message(
            self.info.snd_portid,
            self.info.snd_seq,
            self.cmd,
            attributes,
        )?;
        // SAFETY: The net name space of the request stays while it is handled. The message is
        // given away.
        to_result(unsafe {
            let net = self.info._net.net;
            let r = bindings::netlink_unicast(
                (*net).genl_sock,
                skb,
                self.info.snd_portid,
                bindings::MSG_DONTWAIT as c_int,
            );
            r.min(0)
        })
    }
}

fn message(portid: u32, seq: u32, cmd: u8, attributes: &[u8]) -> Result<*mut bindings::sk_buff> {
    let len = c_uint::try_from(attributes.len())?;
    // SAFETY: No preconditions; the family stays. skb_put() stays inside of what was asked for.
    unsafe {
        let skb = bindings::genlmsg_new(attributes.len(), bindings::GFP_KERNEL);
        if skb.is_null() {
            return Err(ENOMEM);
        }
        let header = bindings::genlmsg_put(skb, portid, seq, FAMILY.0.get(), 0, cmd);
        if header.is_null() {
            bindings::nlmsg_free(skb);
            return Err(EMSGSIZE);
        }
        let to = bindings::skb_put(skb, len).cast::<u8>();
        ptr::copy_nonoverlapping(attributes.as_ptr(), to, attributes.len());
        bindings::genlmsg_end(skb, header);
        Ok(skb)
    }
}

/// Sends an event to everybody who listens. False if nobody does.
///
/// # Errors
/// `ENOMEM`, `ENOBUFS`: the event is lost.
pub fn multicast(cmd: u8, attributes: &[u8]) -> Result<bool> {
    let skb = message(0, 0, cmd, attributes)?;
    // SAFETY: The message is given away; group 0 is the one there is.
    let r = unsafe { bindings::genlmsg_multicast(FAMILY.0.get(), skb, 0, 0, bindings::GFP_KERNEL) };
    if r == ESRCH.to_errno() {
        return Ok(false);
    }
    to_result(r)?;
    Ok(true)
}

unsafe extern "C" fn doit(_skb: *mut bindings::sk_buff, info: *mut bindings::genl_info) -> c_int {
    // SAFETY: The core calls this with a valid request, whose length it has checked to be inside of
    // the buffer and to hold both headers.
    let (info, cmd, attributes) = unsafe {
        let info = &*info;
        let len = (*info.nlhdr).nlmsg_len as usize;
        let from = NLMSG_HEADER_BYTES + GENL_HEADER_BYTES;
        let start = info.nlhdr.cast::<u8>();
        let attributes = if len > from {
            core::slice::from_raw_parts(start.add(from), len - from)
        } else {
            &[]
        };
        (info, (*info.genlhdr).cmd, attributes)
    };
    // INVARIANT: Not kept by the handler, by its lifetime.
    match crate::ctl::handle(&Request {
        info,
        cmd,
        attributes,
    }) {
        Ok(()) => 0,
        Err(e) => e.to_errno(),
    }
}
