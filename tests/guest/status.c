// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Ends in a given way once told:
//
// status exit N | status signal N | status abort | status segv | status thread N (exit by another thread)

#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>

static void *leave(void *argument)
{
	exit((int)(intptr_t)argument);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int number = argc > 2 ? atoi(argv[2]) : 0;
	struct rlimit no_core = { 0, 0 };
	pthread_t thread;

	must(setrlimit(RLIMIT_CORE, &no_core) == 0);
	ready();
	work_until_told();
	if (strcmp(what, "exit") == 0)
		exit(number);
	if (strcmp(what, "signal") == 0)
		kill(getpid(), number);
	if (strcmp(what, "abort") == 0)
		abort();
	if (strcmp(what, "segv") == 0)
		*(volatile int *)mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) = 1;
	if (strcmp(what, "thread") == 0 && pthread_create(&thread, NULL, leave, (void *)(intptr_t)number) == 0)
		for (;;)
			pause();
	fail("status %s: it is still here", what);
}
