// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Computes: registers, a little memory, and one access() between pieces of work. Needs nothing else of any machine,
// so it is the first program that must move, and goes on while its home does not answer.
//
// spin        until told
// spin SECS   for so many seconds of its own processor time, for which it asks the kernel nothing but getrusage()

#include "guest.h"
#include <sys/resource.h>

static double cpu_seconds(void)
{
	struct rusage used;

	must(getrusage(RUSAGE_SELF, &used) == 0);
	return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
	       (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

int main(int argc, char **argv)
{
	static unsigned char data[64 * 1024];
	bool more = true;

	fill(data, sizeof(data), 1);
	ready();
	while (more) {
		work();
		check_fill("data", data, sizeof(data), 1);
		more = argc > 1 ? cpu_seconds() < atof(argv[1]) : !told();
	}
	passed();
}
