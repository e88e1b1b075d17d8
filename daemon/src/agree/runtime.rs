// SPDX-License-Identifier: MIT OR Apache-2.0

//! What openraft runs on: tokio. In tests all that happens follows from a seed: random numbers come from
//! it, and the disk is waited for by the thread itself.

use tokio::task::JoinError;

#[cfg(not(test))]
pub use openraft::impls::TokioRuntime as Runtime;
#[cfg(test)]
pub use seeded::{Seeded as Runtime, seed};

/// Does work that waits for the disk, beside what must not wait.
///
/// # Errors
/// When it panicked or was cut short.
#[cfg(not(test))]
pub async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}

/// The same, with nothing beside it.
#[cfg(test)]
pub async fn on_disk<T>(work: impl FnOnce() -> T) -> Result<T, JoinError> {
    tokio::task::yield_now().await;
    Ok(work())
}

#[cfg(test)]
mod seeded {
    use std::cell::Cell;
    use std::future::Future;
    use std::time::Duration;

    use openraft::impls::TokioRuntime;
    use openraft::{AsyncRuntime, OptionalSend};
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    thread_local! {
        static SEED: Cell<u64> = const { Cell::new(0) };
    }

    /// Begins the random numbers of this thread anew.
    pub fn seed(seed: u64) {
        SEED.set(seed);
    }

    /// Tokio, but for random numbers.
    #[derive(Debug)]
    pub struct Seeded(TokioRuntime);

    impl AsyncRuntime for Seeded {
        type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
        type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
        type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
        type Instant = <TokioRuntime as AsyncRuntime>::Instant;
        type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
        type Timeout<R, T: Future<Output = R> + OptionalSend> =
            <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
        type ThreadLocalRng = SmallRng;
        type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
        type Watch = <TokioRuntime as AsyncRuntime>::Watch;
        type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
        type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

        fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
        where
            T: Future + OptionalSend + 'static,
            T::Output: OptionalSend + 'static,
        {
            TokioRuntime::spawn(future)
        }

        fn sleep(duration: Duration) -> Self::Sleep {
            TokioRuntime::sleep(duration)
        }

        fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
            TokioRuntime::sleep_until(deadline)
        }

        fn timeout<R, F: Future<Output = R> + OptionalSend>(
            duration: Duration,
            future: F,
        ) -> Self::Timeout<R, F> {
            TokioRuntime::timeout(duration, future)
        }

        fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
            deadline: Self::Instant,
            future: F,
        ) -> Self::Timeout<R, F> {
            TokioRuntime::timeout_at(deadline, future)
        }

        fn is_panic(join_error: &Self::JoinError) -> bool {
            TokioRuntime::is_panic(join_error)
        }

        fn thread_rng() -> Self::ThreadLocalRng {
            let seed = SEED.get().wrapping_add(1);
            SEED.set(seed);
            SmallRng::seed_from_u64(seed)
        }

        fn new(threads: usize) -> Self {
            Self(TokioRuntime::new(threads))
        }

        fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
            self.0.block_on(future)
        }
    }
}
