// SPDX-License-Identifier: MIT OR Apache-2.0

//! Asks the majority again and again whether it is there: [`crate::core::isolation`].

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Agreement;
use crate::core::isolation::{Isolation, LOOK_MS};

/// Pause between two questions.
const ASK: Duration = Duration::from_secs(1);
/// One without an answer for so long is asked anew.
const ANSWER_IN: Duration = Duration::from_secs(2);

/// When it was asked, if it was answered.
type Question = Pin<Box<dyn Future<Output = Option<Instant>> + Send>>;

fn ask(agreement: Agreement) -> Question {
    Box::pin(async move {
        sleep(ASK).await;
        let asked = Instant::now();
        let answer = timeout(ANSWER_IN, agreement.read()).await;
        matches!(answer, Ok(Ok(_))).then_some(asked)
    })
}

/// Whether this node is cut off.
pub struct Pulse {
    agreement: Agreement,
    begun: Instant,
    isolation: Isolation,
    question: Question,
    looks: Instant,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pulse({:?})", self.isolation)
    }
}

impl Pulse {
    /// It is not yet; it will be, if no majority answers for `after`.
    pub fn new(agreement: &Agreement, after: Duration) -> Self {
        Self {
            agreement: agreement.clone(),
            begun: Instant::now(),
            isolation: Isolation::new(ms(after), 0),
            question: ask(agreement.clone()),
            looks: Instant::now(),
        }
    }

    /// Waits until it is cut off, or not any more, and says which. What ends this wait loses nothing.
    pub async fn changed(&mut self) -> bool {
        loop {
            tokio::select! {
                biased;
                asked = &mut self.question => {
                    if let Some(asked) = asked {
                        self.isolation.answered(ms(asked - self.begun));
                    }
                    self.question = ask(self.agreement.clone());
                }
                () = sleep_until(self.looks) => {
                    self.looks = Instant::now() + Duration::from_millis(LOOK_MS);
                }
            }
            if let Some(isolated) = self.isolation.look(ms(self.begun.elapsed())) {
                return isolated;
            }
        }
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
