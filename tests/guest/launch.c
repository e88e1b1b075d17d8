// SPDX-License-Identifier: MIT OR Apache-2.0
//
// launch [-n] [-w] PROGRAM [ARGUMENT...]
//
// Starts a program as its child and says on standard error what a parent sees of it, one line each:
//
//	@launch pid N
//	@launch exit N | @launch signal N [core]
//	@launch stopped N | @launch continued		with -w
//	@launch used MS					processor time, as the parent is told it
//
// With -n the program's standard streams are /dev/null. Otherwise it inherits ours, and its standard error goes
// where its standard output goes. Its own status is the program's, or 128 + N.

#include "guest.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

static void tell(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void tell(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say_to(STDERR_FILENO, format, args);
	va_end(args);
}

int main(int argc, char **argv)
{
	bool null = false, watch = false;
	int option, status;
	struct rusage used;
	pid_t child;

	while ((option = getopt(argc, argv, "+nw")) != -1) {
		if (option == 'n')
			null = true;
		else if (option == 'w')
			watch = true;
		else
			return 2;
	}
	must(optind < argc);

	// Keys at the terminal are for the program; we only report.
	signal(SIGINT, SIG_IGN);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGTSTP, SIG_IGN);

	child = fork();
	must(child >= 0);
	if (child == 0) {
		signal(SIGINT, SIG_DFL);
		signal(SIGQUIT, SIG_DFL);
		signal(SIGTSTP, SIG_DFL);
		if (null) {
			int fd = open("/dev/null", O_RDWR);

			must(fd >= 0 && dup2(fd, 0) == 0 && dup2(fd, 1) == 1);
			if (fd > 2)
				close(fd);
		}
		dup2(1, 2);
		execvp(argv[optind], argv + optind);
		fail("exec %s: %s", argv[optind], strerror(errno));
	}
	tell("@launch pid %d", child);

	for (;;) {
		pid_t who = wait4(child, &status, watch ? WUNTRACED | WCONTINUED : 0, &used);

		if (who < 0 && errno == EINTR)
			continue;
		must(who == child);
		if (WIFSTOPPED(status))
			tell("@launch stopped %d", WSTOPSIG(status));
		else if (WIFCONTINUED(status))
			tell("@launch continued");
		else
			break;
	}
	tell("@launch used %ld", used.ru_utime.tv_sec * 1000 + used.ru_utime.tv_usec / 1000 +
					 used.ru_stime.tv_sec * 1000 + used.ru_stime.tv_usec / 1000);
	if (WIFSIGNALED(status)) {
		tell("@launch signal %d%s", WTERMSIG(status), WCOREDUMP(status) ? " core" : "");
		return 128 + WTERMSIG(status);
	}
	tell("@launch exit %d", WEXITSTATUS(status));
	return WEXITSTATUS(status);
}
