// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Touches memory it has filled before it moved, once told:
//
// faults random MIB COUNT      pages in no order; prints nanoseconds each, "MEDIAN TENTH NINETIETH SWITCHES", where
//                              SWITCHES is how often it had to wait, per 1000 pages
// faults sequential MIB        all of them in order; prints KiB per second

#include "guest.h"
#include <sys/mman.h>
#include <sys/resource.h>

#define PAGE 4096ul

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

static long waits(void)
{
	struct rusage used;

	must(getrusage(RUSAGE_THREAD, &used) == 0);
	return used.ru_nvcsw;
}

int main(int argc, char **argv)
{
	must(argc > 2);
	size_t pages = ((size_t)atoi(argv[2]) << 20) / PAGE, count = argc > 3 ? atoi(argv[3]) : 0;
	unsigned char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t *order = calloc(pages, sizeof(*order));
	int64_t *times = calloc(count + 1, sizeof(*times));
	uint64_t random = 88172645463325252u, sum = 0;

	must(memory != MAP_FAILED && order && times && count <= pages);
	// Content that no compression and no comparison makes smaller.
	for (size_t i = 0; i < pages * PAGE / 8; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		((uint64_t *)memory)[i] = random;
	}
	for (size_t i = 0; i < pages; i++)
		order[i] = i;
	for (size_t i = pages - 1; i > 0; i--) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		size_t other = random % (i + 1), kept = order[i];

		order[i] = order[other];
		order[other] = kept;
	}
	ready();
	// Nothing of its own may be missing when it begins: it has computed here for a while.
	work_until_told();
	for (size_t i = 0; i < count; i++)
		times[i] = 0;
	if (count) {
		for (size_t i = 0; i < pages; i++)
			sum += order[i];
		long before = waits();

		for (size_t i = 0; i < count; i++) {
			int64_t start = now_ns();

			sum += *(volatile unsigned char *)(memory + order[i] * PAGE);
			times[i] = now_ns() - start;
		}
		long waited = waits() - before;

		qsort(times, count, sizeof(*times), compare);
		say("RESULT %lld %lld %lld %ld", (long long)times[count / 2], (long long)times[count / 10],
		    (long long)times[count * 9 / 10], waited * 1000 / (long)count);
	} else {
		int64_t start = now_ns();

		for (size_t i = 0; i < pages; i++)
			sum += *(volatile unsigned char *)(memory + i * PAGE);
		say("RESULT %lld", (long long)(pages * 4 * 1000000000.0 / (now_ns() - start)));
	}
	must(sum);
	passed();
}
