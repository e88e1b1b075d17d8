// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Asks for the time without end, through the vdso: it must never go back, and must agree with what a system call
// says. Says the largest step it saw.

#include "guest.h"
#include <sys/syscall.h>
#include <sys/time.h>

static int64_t ns(clockid_t clock, bool ask_kernel)
{
	struct timespec t;

	must((ask_kernel ? syscall(SYS_clock_gettime, clock, &t) : clock_gettime(clock, &t)) == 0);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(void)
{
	static const clockid_t clocks[] = { CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE };
	static const char *const names[] = { "monotonic", "boot", "coarse" };
	int64_t last[3] = { 0 }, largest = 0, used = 0;

	for (int i = 0; i < 3; i++)
		last[i] = ns(clocks[i], false);
	ready();
	do {
		for (int turn = 0; turn < 1000; turn++)
			for (int i = 0; i < 3; i++) {
				int64_t now = ns(clocks[i], turn % 100 == 99);

				if (now < last[i])
					fail("the %s clock went back by %lld ns", names[i], (long long)(last[i] - now));
				if (i == 0 && now - last[i] > largest)
					largest = now - last[i];
				last[i] = now;
			}
		struct timeval day;

		must(gettimeofday(&day, NULL) == 0);
		int64_t wall = ns(CLOCK_REALTIME, false) / 1000 - (day.tv_sec * 1000000ll + day.tv_usec);

		if (wall < -5000000 || wall > 60000000)
			fail("gettimeofday() and the real-time clock are %lld us apart", (long long)wall);
		int64_t cpu = ns(CLOCK_PROCESS_CPUTIME_ID, false);

		must(cpu > 0);
		used = cpu;
	} while (!told());
	say("LARGEST %lld us of %lld us used", (long long)largest / 1000, (long long)used / 1000);
	passed();
}
