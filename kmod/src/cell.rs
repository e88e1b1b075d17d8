// SPDX-License-Identifier: GPL-2.0-only

//! A place for one value that one task leaves for another.

use kernel::prelude::*;
use kernel::sync::{new_spinlock, Arc, SpinLock};

/// See the module.
#[pin_data]
pub struct Cell<T> {
    #[pin]
    value: SpinLock<Option<T>>,
}

/// An empty one, to be shared.
pub fn cell<T>() -> Result<Arc<Cell<T>>> {
    Arc::pin_init(pin_init!(Cell { value <- new_spinlock!(None) }), GFP_KERNEL)
}

impl<T: Unpin> Cell<T> {
    /// Leaves a value.
    pub fn set(&self, v: T) {
        let old = self.value.lock().replace(v);
        drop(old);
    }

    /// Takes the value.
    pub fn get(&self) -> Option<T> {
        self.value.lock().take()
    }
}
