// SPDX-License-Identifier: MIT OR Apache-2.0

//! Sets the time of day from the machine's clock, which counts whole seconds: at the turn of one.

use std::fs;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_settime};

/// The machine's clock.
const CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";
/// A turn is seen no later than this, or the next one is waited for: the host may be busy.
const SEEN_IN: Duration = Duration::from_millis(20);
/// So many turns are waited for. After that a late one has to do.
const TURNS: u32 = 5;

fn now() -> io::Result<i64> {
    let text = fs::read_to_string(CLOCK)?;
    text.trim().parse().map_err(io::Error::other)
}

/// Sets it.
pub(crate) fn set() -> io::Result<ExitCode> {
    for turn in 1..=TURNS {
        let mut asked = Instant::now();
        let before = now()?;
        let seconds = loop {
            let again = Instant::now();
            let now = now()?;
            if now != before {
                break now;
            }
            asked = again;
        };
        // It turned between the two readings.
        let gap = asked.elapsed();
        if gap <= SEEN_IN || turn == TURNS {
            let time = Timespec {
                tv_sec: seconds,
                tv_nsec: i64::from((gap / 2).subsec_nanos()),
            };
            clock_settime(ClockId::Realtime, time)?;
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}
