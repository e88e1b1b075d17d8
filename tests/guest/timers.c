// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Timers that run while the program does something else, and send it signals at the right time:
//
// timers alarm MS     one alarm; says how late it came
// timers itimer MS    a tick every MS milliseconds of real time, counted until told
// timers cpu MS       a tick every MS milliseconds of its own processor time
// timers posix MS     timer_create() with a value, every MS milliseconds

#include "guest.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>

static volatile sig_atomic_t ticks, value;

static void tick(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	ticks++;
	value = info->si_value.sival_int;
}

static int64_t cpu_ms(void)
{
	return now_ms(CLOCK_PROCESS_CPUTIME_ID);
}

// A tick may be missed while the program stands still, and none may be made up.
static void check_ticks(int64_t passed_ms, long ms)
{
	int64_t most = passed_ms / ms + 2, least = passed_ms / ms - 5000 / ms - passed_ms / ms / 4 - 2;

	say("TICKS %d in %lld ms", ticks, (long long)passed_ms);
	if (ticks > most || ticks < least)
		fail("%d ticks of %ld ms in %lld ms", ticks, ms, (long long)passed_ms);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long ms = argc > 2 ? atol(argv[2]) : 100;
	struct sigaction action = { .sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval every = { { ms / 1000, ms % 1000 * 1000 }, { ms / 1000, ms % 1000 * 1000 } }, now;
	int64_t start = now_ms(CLOCK_MONOTONIC);

	must(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGVTALRM, &action, NULL) == 0);
	if (strcmp(what, "alarm") == 0) {
		alarm(ms / 1000);
		ready();
		while (!ticks)
			work();
		int64_t took = now_ms(CLOCK_MONOTONIC) - start;

		if (took < ms - 50 || took > ms + 2500)
			fail("the alarm of %ld ms came after %lld ms", ms, (long long)took);
	} else if (strcmp(what, "itimer") == 0) {
		must(setitimer(ITIMER_REAL, &every, NULL) == 0);
		ready();
		work_until_told();
		must(getitimer(ITIMER_REAL, &now) == 0);
		same(now.it_interval.tv_usec + now.it_interval.tv_sec * 1000000, ms * 1000);
		check_ticks(now_ms(CLOCK_MONOTONIC) - start, ms);
	} else if (strcmp(what, "cpu") == 0) {
		int64_t used = cpu_ms();

		must(setitimer(ITIMER_VIRTUAL, &every, NULL) == 0);
		ready();
		work_until_told();
		check_ticks(cpu_ms() - used, ms);
	} else if (strcmp(what, "posix") == 0) {
		struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM, .sigev_value.sival_int = 99 };
		struct itimerspec spec = { { ms / 1000, ms % 1000 * 1000000 }, { ms / 1000, ms % 1000 * 1000000 } };
		timer_t timer;

		must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
		must(timer_settime(timer, 0, &spec, NULL) == 0);
		ready();
		work_until_told();
		must(timer_gettime(timer, &spec) == 0);
		same(spec.it_interval.tv_nsec + spec.it_interval.tv_sec * 1000000000, ms * 1000000);
		check_ticks(now_ms(CLOCK_MONOTONIC) - start, ms);
		if (ticks)
			same(value, 99);
	} else {
		fail("timers %s: no such test", what);
	}
	passed();
}
