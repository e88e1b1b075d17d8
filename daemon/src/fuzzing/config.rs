// SPDX-License-Identifier: MIT OR Apache-2.0

//! The configuration file.

use std::path::Path;

use crate::config::{Config, address};

/// The text of a file. What is taken can be used, and does not differ from itself.
///
/// # Panics
/// When the bytes do harm.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = address(text, 7400);
    let read = || Config::parse(Path::new("ssid.toml"), text);
    match (read(), read()) {
        (Ok(one), Ok(two)) => {
            assert!(one.fixed_changes(&two).is_empty());
            assert_ne!(one.port, 0);
            let _ = one.guests.refuses(&[0, 1000, u32::MAX]);
        }
        (one, _) => {
            let why = one.expect_err("it was refused once");
            assert!(!why.to_string().is_empty());
        }
    }
}
