// SPDX-License-Identifier: MIT OR Apache-2.0

//! Results on stdout. A reader that has seen enough and closes its end is no error.

use std::io::{self, Write};

use serde::Serialize;

use crate::fail::Fail;

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line of many. Who goes on to read none of them is no error, and ends this process: the daemon notices.
pub(crate) fn line_of_many(text: &str) {
    if let Err(e) = write(format!("{text}\n").as_bytes()) {
        let is_error = e.kind() != io::ErrorKind::BrokenPipe;
        if is_error {
            eprintln!("error: {e}");
        }
        std::process::exit(is_error.into());
    }
}

/// Writes bytes.
pub(crate) fn bytes(bytes: &[u8]) -> Result<(), Fail> {
    match write(bytes) {
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
