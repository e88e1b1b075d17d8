// SPDX-License-Identifier: GPL-2.0-only

//! Module parameters, read where they are used.

use crate::module_parameters;
use crate::wire::task::MAX_ASKED;

/// Most pages asked for by one fault.
pub fn prefetch() -> u32 {
    module_parameters::prefetch
        .value()
        .clamp(1, MAX_ASKED as u32)
}

/// Whether a source sends pages before they are asked for.
pub fn push() -> bool {
    module_parameters::push.value() != 0
}

/// Records in one direction after which another socket of a link is asked for. AES-GCM allows some 2^24.5.
const RENEW_RECORDS: u64 = 1 << 23;

/// Records after which a link is to be renewed; after twice as many it is used no more. Only builds with
/// `SSI_BENCH` can be told another number.
pub fn renew_records() -> u64 {
    #[cfg(SSI_BENCH)]
    if let told @ 1.. = crate::sys::net::renew_records() {
        return told.into();
    }
    RENEW_RECORDS
}

/// What a move carries, and a build for tests can be told to drop.
#[derive(Clone, Copy)]
pub enum Carried {
    /// Extended registers.
    Xstate = 1,
    /// The signal mask.
    Mask = 2,
    /// The offsets of open files.
    Offset = 4,
}

/// Whether this build was told to drop it. Only builds with `SSI_BENCH` can be.
pub fn drops(_what: Carried) -> bool {
    #[cfg(SSI_BENCH)]
    return crate::sys::task::broken() & _what as u32 != 0;
    #[cfg(not(SSI_BENCH))]
    false
}
