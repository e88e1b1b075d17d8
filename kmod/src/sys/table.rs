// SPDX-License-Identifier: GPL-2.0-only

//! Tables of the module: from a number to a shared object, for every context that may spin.

use kernel::prelude::*;
use kernel::rbtree::{RBTree, RBTreeNode};
use kernel::sync::Arc;

/// What a table holds.
pub type Tree<T> = RBTree<u64, Arc<T>>;

/// A node made before the lock is taken.
pub fn node<T>(key: u64, value: Arc<T>) -> Result<RBTreeNode<u64, Arc<T>>> {
    Ok(RBTreeNode::new(key, value, GFP_KERNEL)?)
}

/// Defines a module `$name` with a table from `u64` to `Arc<$ty>`: `init`, `get`, `any`, `insert`,
/// `remove`, `remove_exact`, `next`.
#[macro_export]
macro_rules! table {
    ($(#[$meta:meta])* $name:ident: $ty:ty) => {
        $(#[$meta])*
        #[allow(dead_code, reason = "not every table needs every operation")]
        pub mod $name {
            use super::*;
            #[allow(unused_imports)]
            use kernel::prelude::*;
            #[allow(unused_imports)]
            use kernel::sync::Arc;
            use $crate::sys::table::{node, Tree};

            kernel::sync::global_lock! {
                unsafe(uninit) static TABLE: SpinLock<Option<Tree<$ty>>> = None;
            }

            /// Must be called once when the module loads, before anything else.
            pub fn init() {
                $crate::table!(@init TABLE);
                *TABLE.lock() = Some(Tree::new());
            }

            /// The object with this number.
            pub fn get(key: u64) -> Option<Arc<$ty>> {
                TABLE.lock().as_ref()?.get(&key).cloned()
            }

            /// Whether there is an object of this kind. Takes no reference, which could be the last to be dropped.
            pub fn any(is_one: impl Fn(&$ty) -> bool) -> bool {
                TABLE.lock().as_ref().is_some_and(|t| t.values().any(|v| is_one(v)))
            }

            /// Adds an object.
            ///
            /// # Errors
            /// `EEXIST` when the number is taken; `ENOMEM`.
            pub fn insert(key: u64, value: Arc<$ty>) -> Result {
                let n = node(key, value)?;
                let mut t = TABLE.lock();
                let t = t.as_mut().ok_or(ENODEV)?;
                if t.get(&key).is_some() {
                    return Err(EEXIST);
                }
                t.insert(n);
                Ok(())
            }

            /// Takes an object out.
            pub fn remove(key: u64) -> Option<Arc<$ty>> {
                let n = TABLE.lock().as_mut()?.remove_node(&key);
                n.map(|n| n.to_key_value().1)
            }

            /// Takes this very object out, if it is the one under that number.
            pub fn remove_exact(key: u64, value: &Arc<$ty>) -> bool {
                let mut guard = TABLE.lock();
                let Some(t) = guard.as_mut() else { return false };
                if !t.get(&key).is_some_and(|v| Arc::ptr_eq(v, value)) {
                    return false;
                }
                let n = t.remove_node(&key);
                drop(guard);
                n.is_some()
            }

            /// The first object with a number above `after`.
            pub fn next(after: Option<u64>) -> Option<(u64, Arc<$ty>)> {
                let t = TABLE.lock();
                let t = t.as_ref()?;
                let from = match after {
                    None => 0,
                    Some(u64::MAX) => return None,
                    Some(k) => k + 1,
                };
                let c = t.cursor_lower_bound(&from)?;
                let (k, v) = c.current();
                Some((*k, v.clone()))
            }
        }
    };
    (@init $table:ident) => {
        // SAFETY: Called once at load, before any other use.
        unsafe { $table.init() }
    };
}
