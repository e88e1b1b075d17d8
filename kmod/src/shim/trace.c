// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around tracepoints, which the kernel names in its own tables only, and what probes change. */
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched/task_stack.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <asm/compat.h>
#include "link.h"

struct search {
	const char *name;
	struct tracepoint *found;
};

static void look(struct tracepoint *tp, void *data)
{
	struct search *s = data;

	if (!strcmp(tp->name, s->name))
		s->found = tp;
}

struct tracepoint *ssi_tracepoint_find(const char *name)
{
	struct search s = { .name = name };

	for_each_kernel_tracepoint(look, &s);
	return s.found;
}

void ssi_tracepoint_synchronize(void)
{
	tracepoint_synchronize_unregister();
}

/* ---- System calls that are held back. ---- */

/* Made by the instruction of two bytes that 64-bit programs use, with its numbers? */
int ssi_call_is_native(void)
{
	return !in_ia32_syscall();
}

/* At the entry of a system call: it is not made, and returns `ax`. */
void ssi_call_skip(struct pt_regs *regs, long ax)
{
	regs->orig_ax = -1;
	regs->ax = ax;
}

/* On the way out of a skipped one: the caller makes it once more. */
void ssi_call_again(long number)
{
	struct pt_regs *regs = current_pt_regs();

	regs->ax = number;
	regs->ip -= 2;
}

/* The first argument of a system call, or the number that it points to. */
int ssi_call_flags(struct pt_regs *regs, int indirect, u64 *flags)
{
	*flags = regs->di;
	return indirect ? copy_from_user_nofault(flags, (void __user *)regs->di, sizeof(*flags)) : 0;
}
