// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What everyday calls cost a process that has nothing to do with the cluster. Prints "NAME NANOSECONDS" for each:
// the tenth percentile of many batches, since what disturbs a measurement makes it longer.

#include "guest.h"
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define BATCHES 31

static int zero;

static void do_getppid(void)
{
	syscall(SYS_getppid);
}

static void do_read(void)
{
	char byte;

	must(read(zero, &byte, 1) == 1);
}

static void do_open(void)
{
	int fd = open("/etc/passwd", O_RDONLY);

	must(fd >= 0 && close(fd) == 0);
}

static void do_fault(void)
{
	char *at = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(at != MAP_FAILED);
	for (int i = 0; i < 16; i++)
		at[i * 4096] = 1;
	must(munmap(at, 16 * 4096) == 0);
}

static void do_fork(void)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	must(child > 0 && waitpid(child, &status, 0) == child);
}

static void do_exec(void)
{
	int status;
	pid_t child = fork();

	if (child == 0) {
		execl("/bin/true", "true", (char *)NULL);
		_exit(1);
	}
	must(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void measure(const char *name, void (*body)(void), int count)
{
	int64_t times[BATCHES];

	for (int batch = -2; batch < BATCHES; batch++) {
		struct timespec start, end;

		must(clock_gettime(CLOCK_MONOTONIC, &start) == 0);
		for (int i = 0; i < count; i++)
			body();
		must(clock_gettime(CLOCK_MONOTONIC, &end) == 0);
		if (batch >= 0)
			times[batch] = ((end.tv_sec - start.tv_sec) * 1000000000ll + end.tv_nsec - start.tv_nsec) / count;
	}
	qsort(times, BATCHES, sizeof(*times), compare);
	say("%s %lld", name, (long long)times[BATCHES / 10]);
}

int main(void)
{
	must((zero = open("/dev/zero", O_RDONLY)) >= 0);
	measure("getppid", do_getppid, 20000);
	measure("read", do_read, 10000);
	measure("open", do_open, 1000);
	measure("fault", do_fault, 200);
	measure("fork", do_fork, 10);
	measure("exec", do_exec, 4);
	return 0;
}
