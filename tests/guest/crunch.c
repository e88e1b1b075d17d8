// SPDX-License-Identifier: MIT OR Apache-2.0
//
// crunch ROUNDS: reads and writes 16 MiB of memory in no order, ROUNDS times 100,000 words; says HALF in the middle
// and prints the milliseconds it took.

#include "guest.h"

#define WORDS ((16ul << 20) / 8)

int main(int argc, char **argv)
{
	long rounds = argc > 1 ? atol(argv[1]) : 10;
	uint64_t *memory = malloc(WORDS * 8), random = 88172645463325252u;
	int64_t start;

	must(memory);
	for (size_t i = 0; i < WORDS; i++)
		memory[i] = i;
	ready();
	start = now_ms(CLOCK_MONOTONIC);
	for (long round = 0; round < rounds; round++) {
		if (round == rounds / 2)
			say("HALF");
		for (int i = 0; i < 100000; i++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			memory[random % WORDS] += random;
		}
	}
	say("RESULT %lld", (long long)(now_ms(CLOCK_MONOTONIC) - start));
	passed();
}
