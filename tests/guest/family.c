// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Forks once told, wherever it is then: the child computes until told, and is reaped. A third word ends it.

#include "guest.h"
#include <sys/wait.h>

int main(void)
{
	int status;

	ready();
	work_until_told();

	pid_t child = fork();

	must(child >= 0);
	if (child == 0) {
		same(getppid() > 0, 1);
		work_until_told();
		_exit(45);
	}
	say("CHILD %d", child);
	must(waitpid(child, &status, 0) == child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 45)
		fail("the child ended with status %#x", status);
	must(waitpid(-1, &status, WNOHANG) == -1 && errno == ECHILD);
	say("REAPED");
	// The child used up the second word; it counts here too.
	must(told());
	work_until_told();
	passed();
}
