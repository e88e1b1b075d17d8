// SPDX-License-Identifier: MIT OR Apache-2.0
//
// forks COUNT: fork, exec of /bin/true, wait; prints nanoseconds, "MEDIAN TENTH NINETIETH".

#include "guest.h"
#include <sys/wait.h>

static int64_t now_ns(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 50, status;
	int64_t *times = calloc(count, sizeof(*times));

	must(times);
	for (int i = -5; i < count; i++) {
		int64_t start = now_ns();
		pid_t child = fork();

		if (child == 0) {
			execl("/bin/true", "true", (char *)NULL);
			_exit(1);
		}
		must(waitpid(child, &status, 0) == child && status == 0);
		if (i >= 0)
			times[i] = now_ns() - start;
	}
	qsort(times, count, sizeof(*times), compare);
	say("%lld %lld %lld", (long long)times[count / 2], (long long)times[count / 10],
	    (long long)times[count * 9 / 10]);
	return 0;
}
