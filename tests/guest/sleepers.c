// SPDX-License-Identifier: MIT OR Apache-2.0
//
// sleepers KIND MS: one call that sleeps, and has to end at the right time and with the right answer, whatever
// happens meanwhile. Says READY, sleeps once, checks and says how long it was.
//
// Kinds: nanosleep clock absolute poll ppoll select pselect futex futex-bitset futex-realtime epoll sigtimedwait
// Without end, until SIGUSR1 comes: pause sigsuspend futex-forever poll-forever

#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>

// A slow machine may wake a sleeper late; a wrong timeout is off by more.
#define LATE_MS 2500

static volatile sig_atomic_t caught;

static void note(int number)
{
	(void)number;
	caught++;
}

static struct timespec in_ms(long ms)
{
	return (struct timespec){ ms / 1000, ms % 1000 * 1000000 };
}

static struct timespec at_ms(clockid_t clock, long ms)
{
	struct timespec t;

	must(clock_gettime(clock, &t) == 0);
	t.tv_sec += ms / 1000;
	t.tv_nsec += ms % 1000 * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

static long futex(uint32_t *word, int operation, uint32_t value, struct timespec *timeout, uint32_t bits)
{
	return syscall(SYS_futex, word, operation, value, timeout, NULL, bits);
}

// Returns whether the call ended as it should; errno tells more.
static bool sleep_once(const char *kind, long ms)
{
	static uint32_t word = 7;
	struct timespec t = in_ms(ms), left = { 99, 99 };
	fd_set set;

	FD_ZERO(&set);
	if (strcmp(kind, "nanosleep") == 0)
		return nanosleep(&t, &left) == 0;
	if (strcmp(kind, "clock") == 0)
		return clock_nanosleep(CLOCK_BOOTTIME, 0, &t, &left) == 0;
	if (strcmp(kind, "absolute") == 0) {
		t = at_ms(CLOCK_MONOTONIC, ms);
		return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == 0;
	}
	if (strcmp(kind, "poll") == 0)
		return poll(NULL, 0, ms) == 0;
	if (strcmp(kind, "ppoll") == 0)
		return ppoll(NULL, 0, &t, NULL) == 0;
	if (strcmp(kind, "select") == 0) {
		struct timeval timeout = { ms / 1000, ms % 1000 * 1000 };

		return select(0, &set, NULL, NULL, &timeout) == 0 && timeout.tv_sec == 0 && timeout.tv_usec == 0;
	}
	if (strcmp(kind, "pselect") == 0)
		return pselect(0, &set, NULL, NULL, &t, NULL) == 0;
	if (strcmp(kind, "futex") == 0)
		return futex(&word, FUTEX_WAIT_PRIVATE, 7, &t, 0) == -1 && errno == ETIMEDOUT;
	if (strcmp(kind, "futex-bitset") == 0) {
		t = at_ms(CLOCK_MONOTONIC, ms);
		return futex(&word, FUTEX_WAIT_BITSET_PRIVATE, 7, &t, FUTEX_BITSET_MATCH_ANY) == -1 &&
		       errno == ETIMEDOUT;
	}
	if (strcmp(kind, "futex-realtime") == 0) {
		t = at_ms(CLOCK_REALTIME, ms);
		return futex(&word, FUTEX_WAIT_BITSET_PRIVATE | FUTEX_CLOCK_REALTIME, 7, &t,
			     FUTEX_BITSET_MATCH_ANY) == -1 &&
		       errno == ETIMEDOUT;
	}
	if (strcmp(kind, "epoll") == 0) {
		int fd = epoll_create1(0);
		struct epoll_event event;

		return epoll_wait(fd, &event, 1, ms) == 0;
	}
	if (strcmp(kind, "sigtimedwait") == 0) {
		sigset_t one;

		sigemptyset(&one);
		sigaddset(&one, SIGUSR2);
		must(sigprocmask(SIG_BLOCK, &one, NULL) == 0);
		return sigtimedwait(&one, NULL, &t) == -1 && errno == EAGAIN;
	}
	fail("sleepers %s: no such test", kind);
}

static bool wait_for_signal(const char *kind)
{
	static uint32_t word = 7;

	if (strcmp(kind, "pause") == 0)
		return pause() == -1 && errno == EINTR;
	if (strcmp(kind, "sigsuspend") == 0) {
		sigset_t set, now;

		sigemptyset(&set);
		sigaddset(&set, SIGUSR1);
		must(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
		sigemptyset(&set);
		bool right = sigsuspend(&set) == -1 && errno == EINTR;

		// The mask from before it is back.
		must(sigprocmask(SIG_BLOCK, NULL, &now) == 0);
		return right && sigismember(&now, SIGUSR1) == 1;
	}
	if (strcmp(kind, "futex-forever") == 0)
		return futex(&word, FUTEX_WAIT_PRIVATE, 7, NULL, 0) == -1 && errno == EINTR;
	if (strcmp(kind, "poll-forever") == 0)
		return poll(NULL, 0, -1) == -1 && errno == EINTR;
	fail("sleepers %s: no such test", kind);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = note };
	const char *kind = argc > 1 ? argv[1] : "";
	long ms = argc > 2 ? atol(argv[2]) : 1000;
	int64_t start, took;
	bool right;

	must(sigaction(SIGUSR1, &action, NULL) == 0);
	start = now_ms(CLOCK_MONOTONIC);
	ready();
	right = argc > 2 ? sleep_once(kind, ms) : wait_for_signal(kind);
	int error = errno;

	took = now_ms(CLOCK_MONOTONIC) - start;
	say("SLEPT %lld", (long long)took);
	if (!right)
		fail("%s ended wrongly after %lld ms, errno %d (%s)", kind, (long long)took, error, strerror(error));
	// What ends at a moment of the day ends sooner or later where the day began sooner or later.
	long apart = strcmp(kind, "futex-realtime") == 0 ? 1500 : 0;

	if (argc > 2 && (took < ms - apart || took > ms + LATE_MS + apart))
		fail("%s of %ld ms took %lld ms", kind, ms, (long long)took);
	if (argc <= 2)
		same(caught, 1);
	passed();
}
