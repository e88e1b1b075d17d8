// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Shared memory that one process has to itself: MAP_SHARED | MAP_ANONYMOUS. It keeps its content, and is shared
// with a child that is forked afterwards.

#include "guest.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define LENGTH (512 * 1024)

int main(void)
{
	unsigned char *shared = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned char *sparse = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int status;

	must(shared != MAP_FAILED && sparse != MAP_FAILED);
	fill(shared, LENGTH, 1);
	fill(sparse + 100 * 1024, 1024, 2);
	ready();
	work_until_told();
	check_fill("shared", shared, LENGTH / 2, 1);
	check_zero("the empty part of the sparse one", sparse, 100 * 1024);
	check_fill("the used part of the sparse one", sparse + 100 * 1024, 1024, 2);

	pid_t child = fork();

	if (child == 0) {
		for (size_t i = LENGTH / 2; i < LENGTH; i++)
			same(shared[i], pattern(i, 1));
		fill(shared, LENGTH, 3);
		_exit(44);
	}
	must(child > 0 && waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 44)
		fail("the child ended with status %#x", status);
	check_fill("what the child wrote", shared, LENGTH, 3);
	passed();
}
