// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around work queues, threads and allocation scopes. */
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
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

int ssi_module_get(void)
{
	return try_module_get(THIS_MODULE);
}

void ssi_module_put(void)
{
	module_put(THIS_MODULE);
}

/* Waits for every task that may still be between its last module_put() and the end of our text. */
void ssi_text_left(void)
{
	synchronize_rcu_tasks();
	rcu_barrier();
}
