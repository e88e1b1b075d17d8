// SPDX-License-Identifier: MIT OR Apache-2.0
//
// refuse KIND: has something that keeps a process from moving, and goes on as if nobody had asked: it computes until
// told, and what it has still works then.
//
// Kinds: socket listener seccomp traced shared-mapping shared-memory shared-files vfork-child vfork-parent io-uring
// aio lock record-lock scheduling sysv-memory sysv-undo mount-space uts-space missing-directory missing-opened

#include "guest.h"
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>

static pid_t helper;

static void stop_helper(void)
{
	int status;

	must(kill(helper, SIGKILL) == 0);
	must(waitpid(helper, &status, 0) == helper);
	same(status, SIGKILL);
}

// A process that shares something with this one, and sleeps.
static void share(int flags)
{
	helper = syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0);
	must(helper >= 0);
	if (helper == 0)
		for (;;)
			pause();
}

static int sleep_in_stack(void *unused)
{
	(void)unused;
	while (syscall(SYS_pause))
		;
	return 0;
}

static void until_told(void)
{
	ready();
	work_until_told();
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	int status;

	// Nothing that a helper inherits may outlive the test.
	if (strcmp(kind, "socket") == 0) {
		int ends[2];
		char byte;

		must(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
		until_told();
		must(write(ends[0], "x", 1) == 1 && read(ends[1], &byte, 1) == 1 && byte == 'x');
	} else if (strcmp(kind, "listener") == 0) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);

		must(fd >= 0 && listen(fd, 1) == 0);
		until_told();
	} else if (strcmp(kind, "seccomp") == 0) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog program = { 1, &allow };

		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
		until_told();
		same(prctl(PR_GET_SECCOMP), SECCOMP_MODE_FILTER);
	} else if (strcmp(kind, "traced") == 0) {
		int started[2];
		char byte;

		must(pipe(started) == 0);
		must((helper = fork()) >= 0);
		if (helper == 0) {
			must(ptrace(PTRACE_SEIZE, getppid(), NULL, NULL) == 0);
			must(write(started[1], "x", 1) == 1);
			for (;;)
				if (waitpid(getppid(), &status, __WALL) > 0)
					ptrace(PTRACE_CONT, getppid(), NULL, (void *)0);
		}
		must(read(started[0], &byte, 1) == 1 && close(started[0]) == 0 && close(started[1]) == 0);
		until_told();
		stop_helper();
	} else if (strcmp(kind, "shared-mapping") == 0) {
		int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

		must(shared != MAP_FAILED);
		*shared = 5;
		share(0);
		until_told();
		same(*shared, 5);
		stop_helper();
	} else if (strcmp(kind, "shared-memory") == 0) {
		static char stack[65536] __attribute__((aligned(16)));

		helper = clone(sleep_in_stack, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
		must(helper > 0);
		until_told();
		stop_helper();
	} else if (strcmp(kind, "shared-files") == 0) {
		share(CLONE_FILES);
		until_told();
		stop_helper();
	} else if (strcmp(kind, "vfork-child") == 0) {
		if (vfork() == 0) {
			// It may only do what does not disturb its parent: it is the one that is looked at.
			say("VFORKED %d", (int)syscall(SYS_getpid));
			until_told();
			_exit(46);
		}
		must(wait(&status) > 0);
		same(WEXITSTATUS(status), 46);
	} else if (strcmp(kind, "vfork-parent") == 0) {
		if (vfork() == 0) {
			until_told();
			_exit(46);
		}
		must(wait(&status) > 0);
		same(WEXITSTATUS(status), 46);
	} else if (strcmp(kind, "io-uring") == 0) {
		struct io_uring_params params = { 0 };

		must(syscall(SYS_io_uring_setup, 4, &params) >= 0);
		until_told();
	} else if (strcmp(kind, "aio") == 0) {
		aio_context_t context = 0;

		must(syscall(SYS_io_setup, 4, &context) == 0);
		until_told();
		must(syscall(SYS_io_destroy, context) == 0);
	} else if (strcmp(kind, "lock") == 0 || strcmp(kind, "record-lock") == 0) {
		int fd = open("/tmp/locked", O_RDWR | O_CREAT, 0600);
		struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

		must(fd >= 0 && (kind[0] == 'l' ? flock(fd, LOCK_EX) : fcntl(fd, F_SETLK, &lock)) == 0);
		until_told();
	} else if (strcmp(kind, "scheduling") == 0) {
		struct sched_param param = { .sched_priority = 1 };

		// A real-time program that computes without end starves others; this one only waits.
		must(sched_setscheduler(0, SCHED_FIFO, &param) == 0);
		ready();
		tell_wait();
		same(sched_getscheduler(0), SCHED_FIFO);
	} else if (strcmp(kind, "sysv-memory") == 0) {
		int id = shmget(IPC_PRIVATE, 4096, 0600);
		int *at = shmat(id, NULL, 0);

		must(id >= 0 && at != (void *)-1);
		must(shmctl(id, IPC_RMID, NULL) == 0);
		*at = 6;
		until_told();
		same(*at, 6);
	} else if (strcmp(kind, "sysv-undo") == 0) {
		int id = semget(IPC_PRIVATE, 1, 0600);
		struct sembuf up = { 0, 1, SEM_UNDO };

		must(id >= 0 && semop(id, &up, 1) == 0);
		until_told();
		same(semctl(id, 0, GETVAL), 1);
		must(semctl(id, 0, IPC_RMID) == 0);
	} else if (strcmp(kind, "mount-space") == 0) {
		must(unshare(CLONE_NEWNS) == 0);
		until_told();
	} else if (strcmp(kind, "uts-space") == 0) {
		must(unshare(CLONE_NEWUTS) == 0);
		until_told();
	} else if (strcmp(kind, "missing-directory") == 0) {
		char path[] = "/tmp/only-here-XXXXXX", where[PATH_MAX];

		must(mkdtemp(path) && chdir(path) == 0);
		until_told();
		must(getcwd(where, sizeof(where)) && strcmp(where, path) == 0);
		must(chdir("/") == 0 && rmdir(path) == 0);
	} else if (strcmp(kind, "missing-opened") == 0) {
		char path[] = "/tmp/only-here-XXXXXX";
		int fd;

		must(mkdtemp(path) && (fd = open(path, O_RDONLY | O_DIRECTORY)) >= 0);
		until_told();
		must(mkdirat(fd, "in", 0700) == 0 && unlinkat(fd, "in", AT_REMOVEDIR) == 0);
		must(close(fd) == 0 && rmdir(path) == 0);
	} else {
		fail("refuse %s: no such test", kind);
	}
	passed();
}
