// SPDX-License-Identifier: GPL-2.0-only
/*
 * Wrappers around what the kernel offers for tasks as macros, inlines or plain fields. Which of
 * them is called, when and with what, is decided in Rust.
 */
#include <linux/module.h>
#include <linux/cred.h>
#include <linux/delay.h>
#include <linux/fdtable.h>
#include <linux/fs_struct.h>
#include <linux/freezer.h>
#include <linux/hrtimer.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/nsproxy.h>
#include <linux/pid_namespace.h>
#include <linux/posix-timers.h>
#include <linux/proc_ns.h>
#include <linux/ptrace.h>
#include <linux/regset.h>
#include <linux/rseq.h>
#include <linux/sched/jobctl.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/sched/task_stack.h>
#include <linux/seccomp.h>
#include <linux/sem.h>
#include <linux/slab.h>
#include <linux/task_io_accounting_ops.h>
#include <linux/task_work.h>
#include <linux/time_namespace.h>
#include <linux/tracepoint.h>
#include <linux/uaccess.h>
#include <linux/user_namespace.h>
#include <linux/elf.h>
#include <asm/syscall.h>
#include <asm/unistd.h>
#include "task.h"

static_assert(sizeof(struct ssi_facts) == 128);
static_assert(sizeof(struct ssi_creds) == 88);
static_assert(sizeof(struct ssi_usage) == 80);
static_assert(sizeof(struct ssi_process) == 464);
static_assert(sizeof(struct ssi_thread) == 392);
static_assert(sizeof(struct ssi_siginfo) == 32);
static_assert(sizeof(struct user_regs_struct) == sizeof(u64) * 27);

/* Implemented in sys/task.rs. */
void ssi_rs_task_work(void *arg);

struct task_struct *ssi_task_find(u32 tid)
{
	struct task_struct *t;

	rcu_read_lock();
	t = pid_task(find_pid_ns(tid, &init_pid_ns), PIDTYPE_PID);
	if (t)
		get_task_struct(t);
	rcu_read_unlock();
	return t;
}

void ssi_task_put(struct task_struct *t)
{
	put_task_struct(t);
}

u32 ssi_task_tgid(struct task_struct *t)
{
	return t->tgid;
}

u32 ssi_current_tid(void)
{
	return current->pid;
}

u32 ssi_current_tgid(void)
{
	return current->tgid;
}

int ssi_signal_pending(void)
{
	return signal_pending(current);
}

int ssi_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

int ssi_task_threads(struct task_struct *leader, u32 *tids, int max)
{
	struct task_struct *t;
	int n = 0;

	rcu_read_lock();
	for_each_thread(leader, t) {
		if (t->exit_state || (t->flags & PF_EXITING))
			continue;
		if (n < max)
			tids[n] = t->pid;
		n++;
	}
	rcu_read_unlock();
	return n;
}

struct ssi_work {
	struct callback_head cb;
	void *arg;
};

static void ssi_work_fn(struct callback_head *cb)
{
	struct ssi_work *w = container_of(cb, struct ssi_work, cb);
	void *arg = w->arg;

	kfree(w);
	ssi_rs_task_work(arg);
}

/* 0: `arg` will be handed to ssi_rs_task_work() in the context of `t`. */
int ssi_task_work_add(struct task_struct *t, void *arg, int mode, gfp_t gfp)
{
	struct ssi_work *w = kmalloc(sizeof(*w), gfp);
	int r;

	if (!w)
		return -ENOMEM;
	w->arg = arg;
	init_task_work(&w->cb, ssi_work_fn);
	r = task_work_add(t, &w->cb, mode);
	if (r)
		kfree(w);
	return r;
}

int ssi_twa_signal(void)
{
	return TWA_SIGNAL;
}

int ssi_twa_resume(void)
{
	return TWA_RESUME;
}

int ssi_twa_none(void)
{
	return TWA_NONE;
}

static void ssi_nothing_fn(struct callback_head *cb)
{
	kfree(cb);
}

/* Makes the caller pass through signal handling, and so system call restart, on its way out. */
int ssi_pass_signals(void)
{
	struct callback_head *cb = kmalloc(sizeof(*cb), GFP_KERNEL);
	int r;

	if (!cb)
		return -ENOMEM;
	init_task_work(cb, ssi_nothing_fn);
	r = task_work_add(current, cb, TWA_SIGNAL);
	if (r)
		kfree(cb);
	return r;
}

/* As ipc/sem.c has it. Threads share one from their birth on, mostly empty. */
struct sem_undo_list {
	refcount_t refcnt;
	spinlock_t lock;
	struct list_head list_proc;
};

static int has_semaphore_undo(struct task_struct *t)
{
	const struct sem_undo_list *l = READ_ONCE(t->sysvsem.undo_list);

	return l && !list_empty(&l->list_proc);
}

void ssi_task_facts(struct task_struct *t, struct ssi_facts *f)
{
	struct task_struct *p;
	struct nsproxy *ns;
	const struct cred *cred;
	struct signal_struct *sig = t->signal;

	memset(f, 0, sizeof(*f));
	f->kthread = !!(t->flags & PF_KTHREAD);
	f->exiting = !!(t->flags & PF_EXITING) || t->exit_state;
	f->threads = get_nr_threads(t);
	f->policy = t->policy;
	f->ptraced = !!t->ptrace;
	f->io_uring = !!t->io_uring;
	f->vfork_child = !!t->vfork_done;
	f->sem_undo = has_semaphore_undo(t);
	f->shm_attached = !list_empty(&t->sysvshm.shm_clist);
	f->compat = !!test_tsk_thread_flag(t, TIF_ADDR32);
	f->posix_timers = !hlist_empty(&sig->posix_timers);
	f->cpu_timers = sig->it[0].expires || sig->it[1].expires;
	if (hrtimer_active(&sig->real_timer)) {
		s64 left = ktime_to_ns(hrtimer_get_remaining(&sig->real_timer));

		f->itimer_real_ns = left > 0 ? left : 1;
		f->itimer_real_incr_ns = ktime_to_ns(sig->it_real_incr);
	} else if (sig->it_real_incr) {
		/* Its signal waits to be taken, and the timer is started again by that. */
		f->itimer_real_incr_ns = ktime_to_ns(sig->it_real_incr);
		f->itimer_real_ns = f->itimer_real_incr_ns;
	}
	rcu_read_lock();
	for_each_thread(t, p) {
		if (p->seccomp.mode)
			f->seccomp = 1;
		if (!list_empty(&p->ptraced))
			f->tracing_others = 1;
		if (p->io_uring)
			f->io_uring = 1;
		if (p->ptrace)
			f->ptraced = 1;
		/* A parent waiting for its vfork child counts as frozen, and is not. */
		if (READ_ONCE(p->jobctl) & JOBCTL_TRAP_FREEZE)
			f->frozen |= 1;
		if (READ_ONCE(p->jobctl) & (JOBCTL_STOPPED | JOBCTL_STOP_PENDING))
			f->frozen |= 2;
#ifdef CONFIG_X86_USER_SHADOW_STACK
		if (p->thread.features & 1)
			f->shstk = 1;
#endif
		if (!list_empty(&p->children))
			f->children = 1;
	}
	f->real_parent = task_tgid_nr(rcu_dereference(t->real_parent));
	cred = __task_cred(t);
	f->uid = from_kuid(&init_user_ns, cred->uid);
	if (cred->user_ns != &init_user_ns)
		f->ns_other = 1;
	rcu_read_unlock();
	task_lock(t);
	ns = t->nsproxy;
	if (!ns || ns->uts_ns != init_task.nsproxy->uts_ns || ns->ipc_ns != init_task.nsproxy->ipc_ns ||
	    ns->mnt_ns != init_task.nsproxy->mnt_ns || ns->net_ns != init_task.nsproxy->net_ns ||
	    ns->pid_ns_for_children != init_task.nsproxy->pid_ns_for_children)
		f->ns_other = 1;
	if (task_active_pid_ns(t) != &init_pid_ns)
		f->ns_other = 1;
	if (t->files)
		f->files_shared = atomic_read(&t->files->count);
	if (t->fs)
		f->fs_shared = t->fs->users;
	if (t->mm) {
		f->mm_users = atomic_read(&t->mm->mm_users);
		f->aio = !!rcu_access_pointer(t->mm->ioctx_table);
	}
	strscpy_pad(f->comm, t->comm, sizeof(f->comm));
	task_unlock(t);
}

void ssi_creds_get(struct ssi_creds *c, u32 *groups, u32 max)
{
	const struct cred *cred = current_cred();
	u32 i;

	memset(c, 0, sizeof(*c));
	c->uid = from_kuid(&init_user_ns, cred->uid);
	c->euid = from_kuid(&init_user_ns, cred->euid);
	c->suid = from_kuid(&init_user_ns, cred->suid);
	c->fsuid = from_kuid(&init_user_ns, cred->fsuid);
	c->gid = from_kgid(&init_user_ns, cred->gid);
	c->egid = from_kgid(&init_user_ns, cred->egid);
	c->sgid = from_kgid(&init_user_ns, cred->sgid);
	c->fsgid = from_kgid(&init_user_ns, cred->fsgid);
	c->cap_inheritable = cred->cap_inheritable.val;
	c->cap_permitted = cred->cap_permitted.val;
	c->cap_effective = cred->cap_effective.val;
	c->cap_bset = cred->cap_bset.val;
	c->cap_ambient = cred->cap_ambient.val;
	c->securebits = cred->securebits;
	c->no_new_privs = task_no_new_privs(current);
	c->ngroups = cred->group_info->ngroups;
	for (i = 0; i < c->ngroups && i < max; i++)
		groups[i] = from_kgid(&init_user_ns, cred->group_info->gid[i]);
}

/* Gives the caller every capability; returns what it had, for ssi_creds_put_back(). */
const struct cred *ssi_creds_raise(void)
{
	const struct cred *old = get_current_cred();
	struct cred *new = prepare_kernel_cred(&init_task);

	if (!new) {
		put_cred(old);
		return NULL;
	}
	commit_creds(new);
	return old;
}

/* Consumes `old`. Memory accounting by user goes with the credentials. */
void ssi_creds_put_back(const struct cred *old)
{
	commit_creds((struct cred *)old);
}

/* Consumes `old` as well. */
void ssi_creds_forget(const struct cred *old)
{
	put_cred(old);
}

void ssi_process_get(struct ssi_process *p)
{
	struct mm_struct *mm = current->mm;
	struct time_namespace *tns = current->nsproxy->time_ns;
	struct timespec64 ts;
	int i;

	memset(p, 0, sizeof(*p));
	spin_lock(&mm->arg_lock);
	p->mm[0] = mm->start_code;
	p->mm[1] = mm->end_code;
	p->mm[2] = mm->start_data;
	p->mm[3] = mm->end_data;
	p->mm[4] = mm->start_brk;
	p->mm[5] = mm->brk;
	p->mm[6] = mm->start_stack;
	p->mm[7] = mm->arg_start;
	p->mm[8] = mm->arg_end;
	p->mm[9] = mm->env_start;
	p->mm[10] = mm->env_end;
	spin_unlock(&mm->arg_lock);
	task_lock(current->group_leader);
	for (i = 0; i < RLIM_NLIMITS && i < 16; i++) {
		p->rlim[i][0] = current->signal->rlim[i].rlim_cur;
		p->rlim[i][1] = current->signal->rlim[i].rlim_max;
	}
	task_unlock(current->group_leader);
	p->umask = current->fs->umask;
	p->personality = current->personality;
	p->dumpable = 1;
	p->exit_signal = current->group_leader->exit_signal;
	p->oom_score_adj = current->signal->oom_score_adj;
	ktime_get_ts64(&ts);
	p->monotonic_ns = timespec64_to_ns(&ts) + timespec64_to_ns(&tns->offsets.monotonic);
	ktime_get_boottime_ts64(&ts);
	p->boottime_ns = timespec64_to_ns(&ts) + timespec64_to_ns(&tns->offsets.boottime);
	ssi_usage_get(&p->usage);
}

/* With the lock of signals held. */
static void usage_of(struct ssi_usage *u)
{
	const struct signal_struct *sig = current->signal;
	struct task_struct *t;

	u->utime_ns = sig->utime;
	u->stime_ns = sig->stime;
	u->runtime_ns = sig->sum_sched_runtime;
	u->minflt = sig->min_flt;
	u->majflt = sig->maj_flt;
	u->nvcsw = sig->nvcsw;
	u->nivcsw = sig->nivcsw;
	u->inblock = sig->inblock;
	u->oublock = sig->oublock;
	for_each_thread(current, t) {
		u->utime_ns += t->utime;
		u->stime_ns += t->stime;
		u->runtime_ns += t->se.sum_exec_runtime;
		u->minflt += t->min_flt;
		u->majflt += t->maj_flt;
		u->nvcsw += t->nvcsw;
		u->nivcsw += t->nivcsw;
		u->inblock += task_io_get_inblock(t);
		u->oublock += task_io_get_oublock(t);
	}
	u->maxrss_pages = sig->maxrss;
}

/* What the caller's process has used so far. */
void ssi_usage_get(struct ssi_usage *u)
{
	spin_lock_irq(&current->sighand->siglock);
	usage_of(u);
	spin_unlock_irq(&current->sighand->siglock);
	if (current->mm)
		u->maxrss_pages = max_t(u64, u->maxrss_pages, get_mm_hiwater_rss(current->mm));
}

/* The caller's process has used at least this much. */
void ssi_usage_raise(const struct ssi_usage *u)
{
	struct signal_struct *sig = current->signal;
	struct ssi_usage now;

	spin_lock_irq(&current->sighand->siglock);
	usage_of(&now);
	write_seqlock(&sig->stats_lock);
#define RAISE(to, field) do { if (u->field > now.field) sig->to += u->field - now.field; } while (0)
	RAISE(utime, utime_ns);
	RAISE(stime, stime_ns);
	RAISE(sum_sched_runtime, runtime_ns);
	RAISE(min_flt, minflt);
	RAISE(maj_flt, majflt);
	RAISE(nvcsw, nvcsw);
	RAISE(nivcsw, nivcsw);
	RAISE(inblock, inblock);
	RAISE(oublock, oublock);
	RAISE(maxrss, maxrss_pages);
#undef RAISE
	write_sequnlock(&sig->stats_lock);
	spin_unlock_irq(&current->sighand->siglock);
}

/* Whoever waits for the caller, which is ending by a signal, is told that there is a core. */
void ssi_say_core_dumped(void)
{
	spin_lock_irq(&current->sighand->siglock);
	if ((current->signal->flags & SIGNAL_GROUP_EXIT) && (current->signal->group_exit_code & 0x7f))
		current->signal->group_exit_code |= 0x80;
	spin_unlock_irq(&current->sighand->siglock);
}

/* What the caller's clocks are ahead of this kernel's. */
void ssi_clock_offsets(s64 *monotonic_ns, s64 *boottime_ns)
{
	struct time_namespace *tns = current->nsproxy->time_ns;

	*monotonic_ns = timespec64_to_ns(&tns->offsets.monotonic);
	*boottime_ns = timespec64_to_ns(&tns->offsets.boottime);
}

int ssi_exiting(void)
{
	return !!(current->flags & PF_EXITING);
}

void ssi_rlimits_set(const u64 (*rlim)[2])
{
	int i;

	task_lock(current->group_leader);
	for (i = 0; i < RLIM_NLIMITS && i < 16; i++) {
		current->signal->rlim[i].rlim_cur = rlim[i][0];
		current->signal->rlim[i].rlim_max = rlim[i][1];
	}
	task_unlock(current->group_leader);
}

void ssi_oom_score_adj_set(s32 adj)
{
	current->signal->oom_score_adj = clamp_t(s32, adj, -1000, 1000);
}

int ssi_auxv_get(u64 *auxv, int max)
{
	int n = min_t(int, max, AT_VECTOR_SIZE);

	memcpy(auxv, current->mm->saved_auxv, n * sizeof(*auxv));
	return n;
}

static const struct user_regset *regset_of(struct task_struct *t, unsigned int type)
{
	const struct user_regset_view *v = task_user_regset_view(t);
	unsigned int i;

	for (i = 0; i < v->n; i++)
		if (v->regsets[i].core_note_type == type)
			return &v->regsets[i];
	return NULL;
}

/* Bytes of the caller's extended state in the layout of signal frames; *buf is for kfree. */
int ssi_xstate_get(void **buf)
{
	const struct user_regset *rs = regset_of(current, NT_X86_XSTATE);

	*buf = NULL;
	return rs ? regset_get_alloc(current, rs, rs->n * rs->size, buf) : -ENODEV;
}

void ssi_kfree(void *p)
{
	kfree(p);
}

/* 1 nanosleep, 2 poll, 3 futex, 0 another. Learned by ssi_restart_learn(). */
static long (*restart_fn[4])(struct restart_block *);

int ssi_restart_learn(u32 kind)
{
	struct pt_regs *regs = current_pt_regs();

	if (regs->ax != (unsigned long)-ERESTART_RESTARTBLOCK)
		return 0;
	if (!kind) {
		switch (regs->orig_ax) {
		case __NR_nanosleep:
		case __NR_clock_nanosleep:
			kind = 1;
			break;
		case __NR_poll:
			kind = 2;
			break;
		case __NR_futex:
			kind = 3;
			break;
		}
	}
	if (kind >= 1 && kind <= 3)
		WRITE_ONCE(restart_fn[kind], current->restart_block.fn);
	return 1;
}

int ssi_restart_known(u32 kind)
{
	return kind >= 1 && kind <= 3 && READ_ONCE(restart_fn[kind]);
}

u32 ssi_restart_kind(void)
{
	u32 k;

	for (k = 1; k <= 3; k++)
		if (current->restart_block.fn == READ_ONCE(restart_fn[k]))
			return k;
	return 0;
}

static void restart_get(struct ssi_thread *t)
{
	struct restart_block *r = &current->restart_block;

	t->restart_kind = ssi_restart_kind();
	switch (t->restart_kind) {
	case 1:
		t->restart[0] = r->nanosleep.clockid;
		t->restart[1] = r->nanosleep.type;
		t->restart[2] = (unsigned long)r->nanosleep.rmtp;
		t->restart[3] = ktime_to_ns(r->nanosleep.expires);
		break;
	case 2:
		t->restart[0] = (unsigned long)r->poll.ufds;
		t->restart[1] = r->poll.nfds;
		t->restart[2] = r->poll.has_timeout;
		t->restart[3] = timespec64_to_ns(&r->poll.end_time);
		break;
	case 3:
		t->restart[0] = (unsigned long)r->futex.uaddr;
		t->restart[1] = r->futex.val;
		t->restart[2] = r->futex.flags;
		t->restart[3] = r->futex.bitset;
		t->restart[4] = ktime_to_ns(r->futex.time);
		t->restart[5] = (unsigned long)r->futex.uaddr2;
		break;
	}
}

/* Times in t->restart are this kernel's own; pointers were checked by the caller. */
void ssi_restart_set(u32 kind, const u64 *a)
{
	struct restart_block *r = &current->restart_block;

	r->fn = READ_ONCE(restart_fn[kind]);
	switch (kind) {
	case 1:
		r->nanosleep.clockid = a[0];
		r->nanosleep.type = a[1];
		r->nanosleep.rmtp = (void __user *)a[2];
		r->nanosleep.expires = ns_to_ktime(a[3]);
		break;
	case 2:
		r->poll.ufds = (void __user *)a[0];
		r->poll.nfds = a[1];
		r->poll.has_timeout = !!a[2];
		r->poll.end_time = ns_to_timespec64(a[3]);
		break;
	case 3:
		r->futex.uaddr = (void __user *)a[0];
		r->futex.val = a[1];
		r->futex.flags = a[2];
		r->futex.bitset = a[3];
		r->futex.time = ns_to_ktime(a[4]);
		r->futex.uaddr2 = (void __user *)a[5];
		break;
	}
}

int ssi_thread_get(struct ssi_thread *t)
{
	const struct user_regset *rs = regset_of(current, NT_PRSTATUS);
	void *buf = NULL;
	int n;

	memset(t, 0, sizeof(*t));
	if (!rs)
		return -ENODEV;
	n = regset_get_alloc(current, rs, sizeof(t->regs), &buf);
	if (n < 0)
		return n;
	memcpy(t->regs, buf, min_t(int, n, sizeof(t->regs)));
	kfree(buf);
	t->blocked = current->blocked.sig[0];
	t->saved = current->saved_sigmask.sig[0];
	t->saved_set = test_restore_sigmask();
	t->rseq_version = current->rseq.event.has_rseq;
	t->robust = (unsigned long)current->futex.robust_list;
	t->ctid = (unsigned long)current->clear_child_tid;
	t->sas_sp = current->sas_ss_sp;
	t->sas_size = current->sas_ss_size;
	t->sas_flags = current->sas_ss_flags;
	t->rseq_ptr = (unsigned long)current->rseq.usrptr;
	t->rseq_len = current->rseq.len;
	t->rseq_sig = current->rseq.sig;
	t->rseq_cpu = current->rseq.ids.cpu_id;
	t->rseq_mm_cid = current->rseq.ids.mm_cid;
	t->rseq_node = current->rseq.ids.node_id;
	t->slack_ns = current->timer_slack_ns;
	t->nice = task_nice(current);
	t->policy = current->policy;
	restart_get(t);
	strscpy_pad(t->comm, current->comm, sizeof(t->comm));
	return 0;
}

/* The caller leaves the kernel with these registers; flags and segments as ptrace allows them. */
void ssi_regs_set(const u64 *r)
{
	struct pt_regs *regs = current_pt_regs();
	const unsigned long allowed = X86_EFLAGS_CF | X86_EFLAGS_PF | X86_EFLAGS_AF | X86_EFLAGS_ZF |
		X86_EFLAGS_SF | X86_EFLAGS_TF | X86_EFLAGS_DF | X86_EFLAGS_OF | X86_EFLAGS_RF |
		X86_EFLAGS_AC;

	regs->r15 = r[0];
	regs->r14 = r[1];
	regs->r13 = r[2];
	regs->r12 = r[3];
	regs->bp = r[4];
	regs->bx = r[5];
	regs->r11 = r[6];
	regs->r10 = r[7];
	regs->r9 = r[8];
	regs->r8 = r[9];
	regs->ax = r[10];
	regs->cx = r[11];
	regs->dx = r[12];
	regs->si = r[13];
	regs->di = r[14];
	regs->orig_ax = r[15];
	regs->ip = r[16];
	regs->flags = (regs->flags & ~allowed) | (r[18] & allowed);
	regs->sp = r[19];
	regs->cs = __USER_CS;
	regs->ss = __USER_DS;
}

void ssi_mask_set(u64 blocked, u64 saved, int saved_set)
{
	sigset_t set = { .sig = { blocked } };

	sigdelsetmask(&set, sigmask(SIGKILL) | sigmask(SIGSTOP));
	sigprocmask(SIG_SETMASK, &set, NULL);
	if (saved_set) {
		current->saved_sigmask.sig[0] = saved & ~(sigmask(SIGKILL) | sigmask(SIGSTOP));
		set_restore_sigmask();
	}
}

/* Registers as a program sees them at a puppet's stop: ip, sp, ax, di, si. */
void ssi_puppet_regs(u64 *ip, u64 *sp, u64 *ax, u64 *di, u64 *si)
{
	struct pt_regs *regs = current_pt_regs();

	*ip = regs->ip;
	*sp = regs->sp;
	*ax = regs->ax;
	*di = regs->di;
	*si = regs->si;
}

void ssi_puppet_park(u64 ip, u64 sp)
{
	struct pt_regs *regs = current_pt_regs();

	regs->ip = ip;
	regs->sp = sp;
	regs->ax = 0;
	regs->orig_ax = -1;
	regs->cs = __USER_CS;
	regs->ss = __USER_DS;
	regs->flags &= ~(X86_EFLAGS_TF | X86_EFLAGS_DF | X86_EFLAGS_AC);
}

void ssi_puppet_call(u64 ip, u64 sp, u64 nr, const u64 *a)
{
	struct pt_regs *regs = current_pt_regs();

	regs->ip = ip;
	regs->sp = sp;
	regs->ax = nr;
	regs->di = a[0];
	regs->si = a[1];
	regs->dx = a[2];
	regs->r10 = a[3];
	regs->r8 = a[4];
	regs->r9 = a[5];
	regs->orig_ax = -1;
}

void ssi_seccomp_off(void)
{
	clear_task_syscall_work(current, SECCOMP);
}

void ssi_actions_get(struct ssi_action *a)
{
	struct sighand_struct *h = current->sighand;
	int i;

	spin_lock_irq(&h->siglock);
	for (i = 0; i < _NSIG; i++) {
		a[i].handler = (unsigned long)h->action[i].sa.sa_handler;
		a[i].flags = h->action[i].sa.sa_flags;
		a[i].restorer = (unsigned long)h->action[i].sa.sa_restorer;
		a[i].mask = h->action[i].sa.sa_mask.sig[0];
	}
	spin_unlock_irq(&h->siglock);
}

void ssi_actions_set(const struct ssi_action *a)
{
	struct sighand_struct *h = current->sighand;
	int i;

	spin_lock_irq(&h->siglock);
	for (i = 0; i < _NSIG; i++) {
		if (i + 1 == SIGKILL || i + 1 == SIGSTOP)
			continue;
		h->action[i].sa.sa_handler = (__sighandler_t)a[i].handler;
		h->action[i].sa.sa_flags = a[i].flags;
		h->action[i].sa.sa_restorer = (__sigrestore_t)a[i].restorer;
		h->action[i].sa.sa_mask.sig[0] = a[i].mask & ~(sigmask(SIGKILL) | sigmask(SIGSTOP));
	}
	spin_unlock_irq(&h->siglock);
}

/* Is this signal pending for the caller, blocked or not? */
int ssi_pending(int sig)
{
	int r;

	spin_lock_irq(&current->sighand->siglock);
	r = sigismember(&current->pending.signal, sig) ||
	    sigismember(&current->signal->shared_pending.signal, sig);
	spin_unlock_irq(&current->sighand->siglock);
	return r;
}

/* Hands a signal to one thread, as if it came from where `i` says. */
int ssi_signal_send(struct task_struct *t, const struct ssi_siginfo *i)
{
	kernel_siginfo_t info;

	clear_siginfo(&info);
	info.si_signo = i->signo;
	info.si_code = i->code;
	info.si_errno = i->err;
	info.si_pid = i->pid;
	info.si_uid = i->uid;
	info.si_ptr = (void __user *)i->value;
	return send_sig_info(i->signo, &info, t);
}

/* Reads the siginfo that the kernel wrote for a handler. */
int ssi_siginfo_read(u64 at, struct ssi_siginfo *i)
{
	siginfo_t info;

	if (copy_from_user(&info, (void __user *)at, sizeof(info)))
		return -EFAULT;
	i->signo = info.si_signo;
	i->code = info.si_code;
	i->err = info.si_errno;
	i->pid = info.si_pid;
	i->uid = info.si_uid;
	i->thread_directed = info.si_code == SI_TKILL;
	i->value = (unsigned long)info.si_ptr;
	return 0;
}

static void siginfo_put(struct ssi_siginfo *out, int n, int max, const kernel_siginfo_t *info)
{
	if (n >= max)
		return;
	memset(&out[n], 0, sizeof(*out));
	out[n].signo = info->si_signo;
	out[n].code = info->si_code;
	out[n].err = info->si_errno;
	out[n].pid = info->si_pid;
	out[n].uid = info->si_uid;
	out[n].thread_directed = info->si_code == SI_TKILL;
	out[n].value = (unsigned long)info->si_ptr;
}

/* The signals that wait for the caller or its process, oldest first. Their number, maybe > max. */
int ssi_waiting_get(int shared, struct ssi_siginfo *out, int max)
{
	struct sigpending *p = shared ? &current->signal->shared_pending : &current->pending;
	sigset_t left;
	struct sigqueue *q;
	int n = 0, sig;

	spin_lock_irq(&current->sighand->siglock);
	left = p->signal;
	sigdelsetmask(&left, sigmask(SIGKILL) | sigmask(SIGSTOP));
	list_for_each_entry(q, &p->list, list) {
		sig = q->info.si_signo;
		if (sig == SIGKILL || sig == SIGSTOP)
			continue;
		siginfo_put(out, n++, max, &q->info);
		sigdelset(&left, sig);
	}
	/* Those for which the kernel had no memory: it knows but the number. */
	for (sig = 1; sig <= _NSIG; sig++) {
		kernel_siginfo_t info;

		if (!sigismember(&left, sig))
			continue;
		clear_siginfo(&info);
		info.si_signo = sig;
		info.si_code = SI_USER;
		siginfo_put(out, n++, max, &info);
	}
	spin_unlock_irq(&current->sighand->siglock);
	return n;
}

/* Takes one that waits from the caller, else from its process. */
void ssi_waiting_drop(int sig)
{
	kernel_siginfo_t info;
	enum pid_type type;
	sigset_t mask;

	sigfillset(&mask);
	sigdelset(&mask, sig);
	spin_lock_irq(&current->sighand->siglock);
	dequeue_signal(&mask, &info, &type);
	recalc_sigpending();
	spin_unlock_irq(&current->sighand->siglock);
}

/* A thread of the process of `leader` that does not block `sig`, with a reference; else the leader. */
struct task_struct *ssi_signal_target(struct task_struct *leader, int sig)
{
	struct task_struct *t, *found = leader;

	rcu_read_lock();
	if (sigismember(&leader->blocked, sig) || (leader->flags & PF_EXITING)) {
		for_each_thread(leader, t) {
			if (!sigismember(&t->blocked, sig) && !(t->flags & PF_EXITING)) {
				found = t;
				break;
			}
		}
	}
	get_task_struct(found);
	rcu_read_unlock();
	return found;
}

/* 0 default, 1 ignored, 2 caught. */
int ssi_signal_disposition(struct task_struct *t, int sig)
{
	struct sighand_struct *h;
	__sighandler_t f = SIG_DFL;

	/* The table is typesafe by RCU: at worst an answer of a moment ago. */
	rcu_read_lock();
	h = rcu_dereference(t->sighand);
	if (h)
		f = READ_ONCE(h->action[sig - 1].sa.sa_handler);
	rcu_read_unlock();
	return f == SIG_DFL ? 0 : f == SIG_IGN ? 1 : 2;
}

int ssi_exit_code(struct task_struct *t)
{
	struct signal_struct *s = t->signal;

	if (s->flags & SIGNAL_GROUP_EXIT)
		return s->group_exit_code;
	return t->group_leader->exit_code;
}

void ssi_copy_comm(struct task_struct *t, u8 *comm)
{
	task_lock(t);
	strscpy_pad(comm, t->comm, TASK_COMM_LEN);
	task_unlock(t);
}

int ssi_user_write(u64 to, const void *from, size_t n)
{
	return copy_to_user((void __user *)to, from, n) ? -EFAULT : 0;
}

u64 ssi_ktime_ns(void)
{
	return ktime_get_ns();
}

void ssi_msleep(u32 ms)
{
	fsleep(1000ul * ms);
}

struct mm_struct *ssi_mm_current_get(void)
{
	mmget(current->mm);
	return current->mm;
}

struct mm_struct *ssi_mm_of(struct task_struct *t)
{
	return get_task_mm(t);
}

void ssi_mm_put(struct mm_struct *mm)
{
	mmput(mm);
}

/* Futex duties of the caller towards memory that is no longer its own. */
void ssi_forget_user_memory(void)
{
	current->futex.robust_list = NULL;
	current->clear_child_tid = NULL;
	current->sas_ss_sp = 0;
	current->sas_ss_size = 0;
	current->sas_ss_flags = SS_DISABLE;
	/* Not only the registration: an update may be due on the way out. */
	local_irq_disable();
	current->rseq.usrptr = NULL;
	current->rseq.len = 0;
	current->rseq.sig = 0;
	current->rseq.event.all = 0;
	local_irq_enable();
}

void ssi_rseq_set(const struct ssi_thread *t)
{
	local_irq_disable();
	current->rseq.usrptr = (struct rseq __user *)t->rseq_ptr;
	current->rseq.len = t->rseq_len;
	current->rseq.sig = t->rseq_sig;
	/* The kernel kills whose area says something else than it last wrote. */
	current->rseq.ids.cpu_id = t->rseq_cpu;
	current->rseq.ids.mm_cid = t->rseq_mm_cid;
	current->rseq.ids.node_id = t->rseq_node;
	current->rseq.event.has_rseq = t->rseq_version;
	/* A critical section that was under way is aborted, as by any preemption. */
	current->rseq.event.user_irq = true;
	local_irq_enable();
	rseq_force_update();
}

/* A call that only we interrupted is made again instead of failing. */
void ssi_restart_interrupted(void)
{
	struct pt_regs *regs = current_pt_regs();

	if (regs->ax == (unsigned long)-EINTR && (long)regs->orig_ax >= 0 && !task_sigpending(current))
		regs->ax = -ERESTARTNOINTR;
}

int ssi_cwd(char *buf, int len)
{
	struct path pwd;
	char *p;
	int n;

	get_fs_pwd(current->fs, &pwd);
	p = d_path(&pwd, buf, len);
	if (IS_ERR(p)) {
		n = PTR_ERR(p);
	} else {
		n = strlen(p);
		memmove(buf, p, n);
	}
	path_put(&pwd);
	return n;
}

/* ---- The end of tasks, and of their programs. ---- */

/* Implemented in sys/task.rs; called in the task itself, inside tracepoint_srcu. */
void ssi_rs_exiting(struct task_struct *t, u32 tid, u32 tgid, int last);
void ssi_rs_executed(struct task_struct *t, u32 tgid);

static struct tracepoint *exit_tracepoint, *exec_tracepoint;

static void find_probed(struct tracepoint *tp, void *unused)
{
	if (!strcmp(tp->name, "sched_process_exit"))
		exit_tracepoint = tp;
	else if (!strcmp(tp->name, "sched_process_exec"))
		exec_tracepoint = tp;
}

static void exit_probe(void *data, struct task_struct *t, bool group_dead)
{
	ssi_rs_exiting(t, t->pid, t->tgid, group_dead);
}

static void exec_probe(void *data, struct task_struct *t, pid_t old_pid, struct linux_binprm *bprm)
{
	ssi_rs_executed(t, t->tgid);
}

void ssi_exit_probe_remove(void)
{
	tracepoint_probe_unregister(exec_tracepoint, exec_probe, NULL);
	tracepoint_probe_unregister(exit_tracepoint, exit_probe, NULL);
	tracepoint_synchronize_unregister();
}

int ssi_exit_probe_add(void)
{
	int r;

	for_each_kernel_tracepoint(find_probed, NULL);
	if (!exit_tracepoint || !exec_tracepoint)
		return -ENOENT;
	r = tracepoint_probe_register(exit_tracepoint, exit_probe, NULL);
	if (r)
		return r;
	r = tracepoint_probe_register(exec_tracepoint, exec_probe, NULL);
	if (r) {
		tracepoint_probe_unregister(exit_tracepoint, exit_probe, NULL);
		tracepoint_synchronize_unregister();
	}
	return r;
}
