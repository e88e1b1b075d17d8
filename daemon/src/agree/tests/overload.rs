// SPDX-License-Identifier: MIT OR Apache-2.0

//! Half an hour in which everything is late and much is lost, and nobody is.

use tokio::task::JoinSet;

use super::*;
use crate::agree::pulse::Pulse;

/// How long it lasts.
const LASTS: Duration = Duration::from_secs(30 * 60);
/// So many answers of a hundred are lost.
const LOST: u64 = 10;
/// What is said arrives within this: there and back takes half of twice that, as a mean.
const LATE_MS: u64 = 100;
/// `peer_dead_after_s`, if nobody says something else.
const DEAD_AFTER: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn half_an_hour_of_overload_cuts_nobody_off() {
    let (cluster, all) = Cluster::three_members(31).await;
    {
        let mut wires = cluster.wires.lock().unwrap();
        (wires.late_ms, wires.lost) = (LATE_MS, LOST);
    }
    let mut pulses = JoinSet::new();
    for node in &all {
        let mut pulse = Pulse::new(node, cluster.timing.fence_after(DEAD_AFTER));
        pulses.spawn(async move { pulse.changed().await });
    }
    let term = all[0].status().term;
    let (begun, mut written, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while begun.elapsed() < LASTS {
        let by = &all[written % all.len()];
        let asked = Instant::now();
        let change = put(&(written % 50).to_string(), "x");
        // Answers are lost to who asks another node to make it as well.
        while let Err(e) = by.settle(change.clone()).await {
            assert!(matches!(e, Error::Unknown | Error::Unavailable), "{e}");
        }
        longest = longest.max(asked.elapsed());
        written += 1;
        sleep(Duration::from_secs(2)).await;
    }
    assert!(pulses.try_join_next().is_none(), "somebody is cut off");
    let terms = all[0].status().term - term;
    println!("{written} writes, the longest {longest:?}, {terms} other leaders");
    assert!(longest < 2 * DEAD_AFTER, "a write took {longest:?}");
    cluster.assert_honest();
}
