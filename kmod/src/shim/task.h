/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Plain records that the shim fills and sys/task.rs reads; sizes are asserted on both sides.
 */
#ifndef SSI_TASK_H
#define SSI_TASK_H

#include <linux/types.h>

/* What decides whether a process may move. */
struct ssi_facts {
	u32 kthread, exiting, threads, mm_users;
	u32 ptraced, seccomp, ns_other, compat;
	u32 vfork_child, children, files_shared, fs_shared;
	u32 sem_undo, shm_attached, io_uring, aio;
	u32 posix_timers, policy, shstk, frozen;	/* frozen: 1 by its cgroup, 2 by a signal */
	u32 uid, tracing_others, cpu_timers, real_parent;
	u64 itimer_real_ns, itimer_real_incr_ns;
	u8 comm[16];
};

struct ssi_creds {
	u32 uid, euid, suid, fsuid, gid, egid, sgid, fsgid;
	u64 cap_inheritable, cap_permitted, cap_effective, cap_bset, cap_ambient;
	u32 securebits, no_new_privs, ngroups, pad;
};

/* Of all its threads, those that have ended as well. */
struct ssi_usage {
	u64 utime_ns, stime_ns, runtime_ns;
	u64 minflt, majflt, nvcsw, nivcsw, inblock, oublock;
	u64 maxrss_pages;
};

struct ssi_process {
	u64 mm[11];		/* start_code .. env_end, see ssi_process_get() */
	u64 rlim[16][2];
	u32 umask, personality, dumpable, exit_signal;
	s32 oom_score_adj;
	u32 pad;
	u64 monotonic_ns, boottime_ns;
	struct ssi_usage usage;
};

struct ssi_thread {
	u64 regs[27];		/* struct user_regs_struct */
	u64 blocked, saved;
	u32 saved_set, rseq_version;
	u64 robust, ctid;
	u64 sas_sp, sas_size;
	u64 rseq_ptr;
	u64 restart[6];
	u32 restart_kind, sas_flags, rseq_len, rseq_sig;
	u32 rseq_cpu, rseq_mm_cid, rseq_node, pad;	/* what stands in its area */
	u64 slack_ns;
	s32 nice;
	u32 policy;
	u8 comm[16];
};

struct ssi_action {
	u64 handler, flags, restorer, mask;
};

struct ssi_siginfo {
	s32 signo, code, err, pid;
	u32 uid, thread_directed;
	u64 value;
};

struct ssi_vma {
	u64 start, end, pgoff, flags, ino;
	u32 major, minor, has_anon, special;
	u32 path_offset, path_len;
	u64 file_key;		/* tells files apart, nothing else */
	u32 file_refs, file_vmas;	/* references to it; those of them by mappings of this memory */
};

/* What sys/task.rs and sys/wait.rs call. */
struct mm_struct;
struct task_struct;
struct cred;
struct task_struct *ssi_task_find(u32 tid);
void ssi_task_put(struct task_struct *t);
u32 ssi_task_tgid(struct task_struct *t);
void ssi_usage_get(struct ssi_usage *u);
void ssi_usage_raise(const struct ssi_usage *u);
void ssi_say_core_dumped(void);
u32 ssi_current_tid(void);
u32 ssi_current_tgid(void);
int ssi_signal_pending(void);
int ssi_fatal_signal_pending(void);
int ssi_task_threads(struct task_struct *leader, u32 *tids, int max);
int ssi_task_work_add(struct task_struct *t, void *arg, int mode, gfp_t gfp);
int ssi_twa_signal(void);
int ssi_twa_resume(void);
int ssi_twa_none(void);
int ssi_pass_signals(void);
void ssi_task_facts(struct task_struct *t, struct ssi_facts *f);
void ssi_creds_get(struct ssi_creds *c, u32 *groups, u32 max);
const struct cred *ssi_creds_raise(void);
void ssi_creds_put_back(const struct cred *old);
void ssi_creds_forget(const struct cred *old);
void ssi_process_get(struct ssi_process *p);
void ssi_clock_offsets(s64 *monotonic_ns, s64 *boottime_ns);
int ssi_exiting(void);
void ssi_rlimits_set(const u64 (*rlim)[2]);
void ssi_oom_score_adj_set(s32 adj);
int ssi_auxv_get(u64 *auxv, int max);
int ssi_xstate_get(void **buf);
void ssi_kfree(void *p);
int ssi_restart_learn(u32 kind);
int ssi_restart_known(u32 kind);
u32 ssi_restart_kind(void);
void ssi_restart_set(u32 kind, const u64 *a);
int ssi_thread_get(struct ssi_thread *t);
void ssi_regs_set(const u64 *r);
void ssi_mask_set(u64 blocked, u64 saved, int saved_set);
void ssi_puppet_regs(u64 *ip, u64 *sp, u64 *ax, u64 *di, u64 *si);
void ssi_puppet_park(u64 ip, u64 sp);
void ssi_puppet_call(u64 ip, u64 sp, u64 nr, const u64 *a);
void ssi_seccomp_off(void);
void ssi_actions_get(struct ssi_action *a);
void ssi_actions_set(const struct ssi_action *a);
int ssi_pending(int sig);
int ssi_signal_send(struct task_struct *t, const struct ssi_siginfo *i);
int ssi_siginfo_read(u64 at, struct ssi_siginfo *i);
int ssi_waiting_get(int shared, struct ssi_siginfo *out, int max);
void ssi_waiting_drop(int sig);
struct task_struct *ssi_signal_target(struct task_struct *leader, int sig);
int ssi_signal_disposition(struct task_struct *t, int sig);
int ssi_exit_code(struct task_struct *t);
void ssi_copy_comm(struct task_struct *t, u8 *comm);
int ssi_user_write(u64 to, const void *from, size_t n);
u64 ssi_ktime_ns(void);
void ssi_msleep(u32 ms);
struct mm_struct *ssi_mm_current_get(void);
struct mm_struct *ssi_mm_of(struct task_struct *t);
void ssi_mm_put(struct mm_struct *mm);
void ssi_forget_user_memory(void);
void ssi_rseq_set(const struct ssi_thread *t);
void ssi_restart_interrupted(void);
int ssi_cwd(char *buf, int len);
int ssi_exit_probe_add(void);
void ssi_exit_probe_remove(void);

#endif
