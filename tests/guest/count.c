// SPDX-License-Identifier: MIT OR Apache-2.0
//
// count MS [LENGTH]: writes "LINE n", padded to LENGTH bytes, every MS milliseconds (0: as fast as it goes) until
// told, then "LAST n". A reader sees at once whether a line is lost, doubled or torn.

#include "guest.h"

int main(int argc, char **argv)
{
	long ms = argc > 1 ? atol(argv[1]) : 10;
	int length = argc > 2 ? atoi(argv[2]) : 0;
	unsigned long n = 0;

	ready();
	do {
		struct timespec nap = { ms / 1000, ms % 1000 * 1000000 };
		char line[400];
		int size = snprintf(line, sizeof(line), "LINE %lu", n++);

		if (size < length)
			line[size++] = ' ';
		for (; size < length && size < (int)sizeof(line) - 1; size++)
			line[size] = ' ' + size % 64 + 1;
		line[size] = 0;
		say("%s", line);
		if (ms)
			while (nanosleep(&nap, &nap) != 0)
				must(errno == EINTR);
	} while (!told());
	say("LAST %lu", n - 1);
	passed();
}
