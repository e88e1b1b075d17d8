// SPDX-License-Identifier: MIT OR Apache-2.0

//! Calls to the daemon.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ssid::api::INTERFACE;
use ssid::varlink::Client;

use crate::fail::Fail;

/// The daemon answers questions in this time, with or without the other nodes.
const ANSWER_IN: Duration = Duration::from_secs(60);

/// Calls a method that has one answer.
pub(crate) fn once<T: DeserializeOwned>(
    socket: &Path,
    method: &str,
    parameters: &impl Serialize,
) -> Result<T, Fail> {
    let method = format!("{INTERFACE}.{method}");
    let call = || Client::connect(socket, Some(ANSWER_IN))?.ask(&method, parameters);
    call().map_err(|e| Fail::call(socket, e))
}
