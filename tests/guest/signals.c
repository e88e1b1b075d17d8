// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Signals:
//
// signals state   dispositions, masks, pending signals with their values, the alternate stack
// signals catch   says every signal it catches, with who sent it and its value, until SIGTERM
// signals ignore  ignores what would end it, and computes until told

#include "guest.h"
#include <signal.h>
#include <sys/syscall.h>

// The kernel's own view of a disposition: the C library adds a restorer and hides numbers.
struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	unsigned long mask;
};

static struct kernel_sigaction disposition(int number)
{
	struct kernel_sigaction action;

	must(syscall(SYS_rt_sigaction, number, NULL, &action, 8) == 0);
	return action;
}

static unsigned char stack[64 * 1024];
static volatile sig_atomic_t caught;
static int order[8], values[8], codes[8], senders[8];
static bool on_stack[8];

static void note(int number, siginfo_t *info, void *context)
{
	unsigned char here;

	(void)context;
	if (caught < 8) {
		order[caught] = number;
		values[caught] = info->si_value.sival_int;
		codes[caught] = info->si_code;
		senders[caught] = info->si_pid;
		on_stack[caught] = &here >= stack && &here < stack + sizeof(stack);
	}
	caught++;
}

static void handle(int number, int flags, sigset_t mask)
{
	struct sigaction action = { .sa_sigaction = note, .sa_flags = SA_SIGINFO | flags, .sa_mask = mask };

	must(sigaction(number, &action, NULL) == 0);
}

static void state(void)
{
	stack_t alternate = { .ss_sp = stack, .ss_size = sizeof(stack) }, got;
	struct kernel_sigaction before[65];
	sigset_t none, some, blocked, now;
	int first = SIGRTMIN + 3, second = SIGRTMIN + 5;

	sigemptyset(&none);
	sigemptyset(&some);
	sigaddset(&some, SIGHUP);
	sigaddset(&some, SIGRTMAX);
	must(sigaltstack(&alternate, NULL) == 0);
	handle(SIGUSR1, SA_ONSTACK, none);
	handle(SIGUSR2, SA_RESTART, some);
	handle(first, SA_ONSTACK | SA_NODEFER, some);
	handle(second, SA_RESTART, none);
	handle(SIGWINCH, SA_RESETHAND, none);
	signal(SIGHUP, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigaddset(&blocked, first);
	sigaddset(&blocked, second);
	sigaddset(&blocked, SIGTSTP);
	must(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
	// Pending over the move: of a real-time signal each one, of the others one; to the process and to the thread.
	must(sigqueue(getpid(), second, (union sigval){ .sival_int = 0x5ec0 }) == 0);
	must(sigqueue(getpid(), first, (union sigval){ .sival_int = 0xabcde1 }) == 0);
	must(sigqueue(getpid(), first, (union sigval){ .sival_int = 0xabcde2 }) == 0);
	must(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0);
	must(syscall(SYS_tgkill, getpid(), gettid(), second) == 0);
	for (int number = 1; number <= 64; number++)
		before[number] = disposition(number);

	ready();
	work_until_told();

	for (int number = 1; number <= 64; number++) {
		struct kernel_sigaction after = disposition(number);

		if (memcmp(&after, &before[number], sizeof(after)) != 0)
			fail("signal %d: handler %p flags %#lx mask %#lx, not %p %#lx %#lx", number, after.handler,
			     after.flags, after.mask, before[number].handler, before[number].flags,
			     before[number].mask);
	}
	must(sigprocmask(SIG_BLOCK, NULL, &now) == 0);
	must(memcmp(&now, &blocked, 8) == 0);
	must(sigpending(&now) == 0);
	for (int number = 1; number <= 64; number++)
		same(sigismember(&now, number) == 1 ? number : 0,
		     number == SIGUSR1 || number == first || number == second ? number : 0);
	must(sigaltstack(NULL, &got) == 0);
	must(got.ss_sp == stack && got.ss_size == sizeof(stack) && got.ss_flags == 0);

	same(caught, 0);
	// One after the other, so that the order is ours.
	sigdelset(&blocked, first);
	must(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
	same(caught, 2);
	for (int i = 0; i < 2; i++) {
		same(order[i], first);
		same(codes[i], SI_QUEUE);
		same(senders[i], getpid());
		must(on_stack[i]);
	}
	// SA_NODEFER: the second comes while the first is handled, so the one that is noted first is either.
	same(values[0] + values[1], 0xabcde1 + 0xabcde2);
	sigdelset(&blocked, SIGUSR1);
	must(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
	same(caught, 3);
	same(order[2], SIGUSR1);
	same(codes[2], SI_USER);
	same(senders[2], getpid());
	must(on_stack[2]);
	sigdelset(&blocked, second);
	must(sigprocmask(SIG_SETMASK, &blocked, NULL) == 0);
	same(caught, 5);
	same(order[3], second);
	same(order[4], second);
	same((codes[3] == SI_TKILL) + (codes[4] == SI_TKILL), 1);
	same((values[3] == 0x5ec0 && codes[3] == SI_QUEUE) + (values[4] == 0x5ec0 && codes[4] == SI_QUEUE), 1);
	must(!on_stack[3]);
	must(raise(SIGUSR2) == 0);
	same(caught, 6);
}

static void catch(void)
{
	sigset_t all;

	sigfillset(&all);
	must(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
	ready();
	for (;;) {
		siginfo_t info;
		struct timespec poll = { 0, 0 };
		int number;

		work();
		number = sigtimedwait(&all, &info, &poll);
		if (number < 0) {
			must(errno == EAGAIN || errno == EINTR);
			continue;
		}
		say("CAUGHT %d code %d pid %d value %d", number, info.si_code, info.si_pid, info.si_value.sival_int);
		if (number == SIGTERM)
			return;
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "state") == 0) {
		state();
	} else if (strcmp(what, "catch") == 0) {
		catch();
	} else if (strcmp(what, "ignore") == 0) {
		signal(SIGHUP, SIG_IGN);
		signal(SIGINT, SIG_IGN);
		signal(SIGTERM, SIG_IGN);
		ready();
		work_until_told();
	} else {
		fail("signals %s: no such test", what);
	}
	passed();
}
