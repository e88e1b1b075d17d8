// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results on stdout. A reader that has seen enough and closes its end is no error.

use std::io::{self, Write};

use serde::Serialize;

use crate::fail::Fail;

/// Writes bytes.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Fail> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Fail::other(&e)),
        _ => Ok(()),
    }
}

/// Writes a line.
pub(crate) fn line(text: &str) -> Result<(), Fail> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes one JSON value on a line.
pub(crate) fn json(value: &impl Serialize) -> Result<(), Fail> {
    line(&serde_json::to_string(value).map_err(|e| Fail::other(&e))?)
}
