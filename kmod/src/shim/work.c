// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around work queues, threads and allocation scopes. */
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>
#include "link.h"

struct workqueue_struct *ssi_workqueue(int max_active)
{
	return alloc_workqueue("ssi", WQ_UNBOUND, max_active);
}

void ssi_work_init(struct work_struct *work, work_func_t f)
{
	INIT_WORK(work, f);
}

void ssi_work_queue(struct workqueue_struct *wq, struct work_struct *work)
{
	queue_work(wq, work);
}

unsigned int ssi_noio_save(void)
{
	return memalloc_noio_save();
}

void ssi_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

int ssi_thread_stopping(void)
{
	return (current->flags & PF_KTHREAD) && kthread_should_stop();
}
