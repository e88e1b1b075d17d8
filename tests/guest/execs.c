// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Replaces itself by exec, and checks what has to survive: the process id, the mask, ignored signals, descriptors
// without close-on-exec, the working directory.
//
// execs           from the first thread
// execs thread    from another one, which then becomes the first
// execs busybox   by /bin/busybox, for a program that knows nothing of this

#include "guest.h"
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

static char *self, pid_text[20], kept_text[20], closed_text[20];

static void *again(void *argument)
{
	(void)argument;
	execl("/proc/self/exe", self, "second", pid_text, kept_text, closed_text, (char *)NULL);
	fail("exec: %s", strerror(errno));
}

static void second(char **argv)
{
	struct sigaction action;
	sigset_t now;
	char where[PATH_MAX];

	same(getpid(), atoi(argv[2]));
	same(syscall(SYS_gettid), atoi(argv[2]));
	must(sigprocmask(SIG_BLOCK, NULL, &now) == 0 && sigismember(&now, SIGUSR2) == 1);
	must(sigaction(SIGHUP, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
	must(sigaction(SIGUSR1, NULL, &action) == 0 && action.sa_handler == SIG_DFL);
	must(fcntl(atoi(argv[3]), F_GETFD) == 0);
	must(fcntl(atoi(argv[4]), F_GETFD) == -1 && errno == EBADF);
	must(getcwd(where, sizeof(where)) && strcmp(where, "/usr") == 0);
	say("SECOND");
}

static void note(int number)
{
	(void)number;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	static char go[PATH_MAX];

	if (strcmp(what, "second") == 0) {
		second(argv);
		// The first word was used up before the exec.
		if (getenv("GO"))
			snprintf(go, sizeof(go), "%s.second", getenv("GO")), setenv("GO", go, 1);
		work_until_told();
		passed();
	}

	int kept = open("/dev/null", O_RDONLY), closed = open("/dev/null", O_RDONLY | O_CLOEXEC);
	sigset_t set;
	pthread_t thread;

	must(kept >= 0 && closed >= 0 && chdir("/usr") == 0);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR2);
	must(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
	signal(SIGHUP, SIG_IGN);
	signal(SIGUSR1, note);
	self = argv[0];
	snprintf(pid_text, sizeof(pid_text), "%d", getpid());
	snprintf(kept_text, sizeof(kept_text), "%d", kept);
	snprintf(closed_text, sizeof(closed_text), "%d", closed);
	ready();
	work_until_told();
	if (strcmp(what, "busybox") == 0)
		execl("/bin/busybox", "busybox", "sh", "-c", "echo by exec $$; exit 33", (char *)NULL);
	else if (strcmp(what, "thread") == 0 && pthread_create(&thread, NULL, again, NULL) == 0)
		for (;;)
			pause();
	else
		again(NULL);
	fail("exec: %s", strerror(errno));
}
