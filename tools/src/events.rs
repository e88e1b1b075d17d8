// SPDX-License-Identifier: MIT OR Apache-2.0

//! `ssictl events`.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Value, json};
use ssid::api::{Event, EventsReply, INTERFACE};
use ssid::varlink::{Client, Error};

use crate::ask;
use crate::cli::{Events, Output};
use crate::fail::Fail;
use crate::out;

/// Shows the last events, and those that follow if they are watched.
pub(crate) fn events(socket: &Path, a: &Events) -> Result<(), Fail> {
    if !a.watch {
        let reply: EventsReply = ask::once(socket, "Events", &json!({}))?;
        lines(&reply, a.output).for_each(|l| out::line_of_many(&l));
        return Ok(());
    }
    let mut client = Client::connect(socket, None).map_err(|e| Fail::call(socket, e))?;
    let call = client.call(
        &format!("{INTERFACE}.Events"),
        &json!({}),
        |reply: EventsReply| lines(&reply, a.output).for_each(|l| out::line_of_many(&l)),
    );
    // It does not end by itself.
    Err(Fail::call(socket, call.err().unwrap_or(Error::Closed)))
}

fn lines(reply: &EventsReply, output: Output) -> impl Iterator<Item = String> {
    reply.events.iter().map(move |event| match output {
        Output::Json => json!(event).to_string(),
        Output::Text => describe(event),
    })
}

fn describe(e: &Event) -> String {
    let rest = e.rest.iter().map(|(key, value)| match value {
        Value::String(text) => format!(" {key}={}", word(text)),
        other => format!(" {key}={other}"),
    });
    let rest: String = rest.collect();
    let time = word(e.time.get(..23).unwrap_or(&e.time));
    format!("{time}  n{}  {}{rest}", e.node, word(&e.event))
}

/// One word, whatever another node says: no terminal is told what to do by it.
fn word(text: &str) -> Cow<'_, str> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) {
        text.into()
    } else {
        format!("{text:?}").into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event: Event = serde_json::from_value(json!({
            "hlc": "5.0", "time": "2027-01-02T03:04:05.678901234Z", "node": 2, "event": "migrate",
            "pid": 7, "outcome": "no\u{1b}[2J way",
        }))
        .unwrap();
        let line = "2027-01-02T03:04:05.678  n2  migrate outcome=\"no\\u{1b}[2J way\" pid=7";
        assert_eq!(describe(&event), line);
    }
}
