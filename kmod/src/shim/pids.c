// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around the allocation of process ids: a probe, the cursor, and the list of all. */
#include <linux/fprobe.h>
#include <linux/ftrace.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pid.h>
#include <linux/pid_namespace.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/string.h>
#include "link.h"

/* Implemented in sys/pids.rs. */
void ssi_rs_alloc_pid(unsigned long task, int chosen);

/*
 * alloc_pid(ns, set_tid, set_tid_size): a number in the initial name space is chosen by the caller
 * only if it gives one for every level.
 */
static int ssi_alloc_pid(struct fprobe *fp, unsigned long ip, unsigned long ret_ip,
			 struct ftrace_regs *regs, void *data)
{
	struct pid_namespace *ns = (struct pid_namespace *)ftrace_regs_get_argument(regs, 0);
	unsigned long size = ftrace_regs_get_argument(regs, 2);

	ssi_rs_alloc_pid((unsigned long)current, size > ns->level);
	return 0;
}

static struct fprobe ssi_probe;

int ssi_pids_probe(void)
{
	const char *name = "alloc_pid";

	memset(&ssi_probe, 0, sizeof(ssi_probe));
	ssi_probe.entry_handler = ssi_alloc_pid;
	return register_fprobe_syms(&ssi_probe, &name, 1);
}

void ssi_pids_unprobe(void)
{
	unregister_fprobe(&ssi_probe);
}

unsigned int ssi_pids_cursor(void)
{
	return idr_get_cursor(&init_pid_ns.idr);
}

void ssi_pids_cursor_set(unsigned int at)
{
	idr_set_cursor(&init_pid_ns.idr, at);
}

int ssi_pids_max(void)
{
	return READ_ONCE(init_pid_ns.pid_max);
}

unsigned int ssi_task_number(struct task_struct *t)
{
	return t->pid;
}

/* The first number in use from nr on, with the name of its task if it has one; 0 if there is none. */
unsigned int ssi_pids_next(unsigned int nr, char *comm)
{
	struct task_struct *t;
	struct pid *pid;
	unsigned int found = 0;

	rcu_read_lock();
	pid = find_ge_pid(nr, &init_pid_ns);
	if (pid) {
		found = pid_nr(pid);
		t = pid_task(pid, PIDTYPE_PID);
		strscpy_pad(comm, t ? t->comm : "", TASK_COMM_LEN);
	}
	rcu_read_unlock();
	return found;
}
