// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ssictl audit`: the audit log of this node. Needs no daemon.

use std::time::Duration;

use serde_json::json;
use ssid::audit::{self, Found};

use crate::cli::{AuditVerify, Output};
use crate::fail::Fail;
use crate::out;

/// The daemon may be writing: what is wrong with the end of the log is looked at again after this.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Checks the chain of records.
pub(crate) fn verify(a: &AuditVerify) -> Result<(), Fail> {
    let whole = |f: &Found| f.broken.is_none() && f.unfinished_bytes == 0;
    let found = match audit::verify(&a.dir, a.head) {
        Ok(found) if whole(&found) => found,
        _ => {
            std::thread::sleep(LOOK_AGAIN);
            audit::verify(&a.dir, a.head).map_err(|e| Fail::other(&e))?
        }
    };
    let dir = a.dir.display();
    if let Some(broken) = &found.broken {
        return Err(Fail::said(
            format!("{}:{}: {}", broken.path.display(), broken.line, broken.why),
            "the records before that line are as they were written; those after it may not be",
        ));
    }
    if found.unfinished_bytes > 0 {
        return Err(Fail::said(
            format!(
                "{dir}: the last {} bytes are no whole record",
                found.unfinished_bytes
            ),
            "after a power cut that is to be expected, and mends when ssid starts",
        ));
    }
    let Some(head) = found.head else {
        return Err(Fail::said(format!("{dir}: there is no record"), ""));
    };
    if let Some(wanted) = a.head.filter(|_| !found.seen) {
        return Err(Fail::said(
            format!("{dir}: no record has the hash {wanted}"),
            "the log was cut short or made anew, or is so old that its file was removed",
        ));
    }
    let records = found.records();
    match a.output {
        Output::Text => out::line(&format!(
            "good: {records} records, {} to {}, the last with the hash {}",
            found.first, head.seq, head.hash
        )),
        Output::Json => out::json(&json!({
            "records": records,
            "first": found.first,
            "last": head.seq,
            "head": head.hash.to_string(),
        })),
    }
}
