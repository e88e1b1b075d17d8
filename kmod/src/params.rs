// SPDX-License-Identifier: GPL-2.0-only

//! Module parameters, read where they are used.

use crate::module_parameters;
use crate::wire::task::MAX_PAGES;

/// Most pages fetched by one fault.
pub fn prefetch() -> u32 {
    module_parameters::prefetch
        .value()
        .clamp(1, MAX_PAGES as u32)
}

/// Whether a source sends pages before they are asked for.
pub fn push() -> bool {
    module_parameters::push.value() != 0
}
