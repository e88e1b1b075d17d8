// SPDX-License-Identifier: MIT OR Apache-2.0
//
// beat MIB     fills MIB of memory with random bytes; then writes a line every 10 ms and changes a random page each
//              time, until told
// beat stamp FILE   copies nothing, but writes the moment at which each line of its standard input came into FILE,
//                   in microseconds of the monotonic clock

#include "guest.h"
#include <sys/mman.h>

#define PAGE 4096ul

static void stamp(const char *path)
{
	FILE *file = fopen(path, "w");
	char bytes[4096];
	ssize_t size;

	must(file);
	while ((size = read(STDIN_FILENO, bytes, sizeof(bytes))) > 0) {
		struct timespec t;

		must(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
		for (ssize_t i = 0; i < size; i++)
			if (bytes[i] == '\n')
				fprintf(file, "%lld\n", t.tv_sec * 1000000ll + t.tv_nsec / 1000);
		fflush(file);
	}
	fclose(file);
}

int main(int argc, char **argv)
{
	must(argc > 1);
	if (strcmp(argv[1], "stamp") == 0) {
		must(argc > 2);
		stamp(argv[2]);
		return 0;
	}
	size_t pages = ((size_t)atoi(argv[1]) << 20) / PAGE;
	uint64_t random = 88172645463325252u, line = 0;
	unsigned char *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(memory != MAP_FAILED);
	for (size_t i = 0; i < pages * PAGE / 8; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		((uint64_t *)memory)[i] = random;
	}
	do {
		struct timespec nap = { 0, 10 * 1000 * 1000 };

		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		memory[random % pages * PAGE + line % PAGE]++;
		say("%llu", (unsigned long long)line++);
		while (nanosleep(&nap, &nap) != 0)
			must(errno == EINTR);
	} while (!told());
	return PASSED;
}
