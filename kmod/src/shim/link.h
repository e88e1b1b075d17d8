/* SPDX-License-Identifier: GPL-2.0-only */
/* What the shims of links, commands and process ids offer to Rust. Declared again in kmod/src/sys. */
#ifndef SSI_LINK_H
#define SSI_LINK_H

#include <linux/types.h>
#include <linux/workqueue.h>

struct pt_regs;
struct socket;
struct task_struct;
struct tracepoint;

/* net.c */
int ssi_sock_is_tcp(struct socket *sock);
int ssi_sock_is_established(struct socket *sock);
void ssi_sock_adopt(struct socket *sock, unsigned int send_ms, unsigned int notsent);
int ssi_sock_leave_cgroup(struct socket *sock);

/* pids.c */
int ssi_pids_probe(void);
void ssi_pids_unprobe(void);
unsigned int ssi_pids_cursor(void);
void ssi_pids_cursor_set(unsigned int at);
int ssi_pids_max(void);
unsigned int ssi_task_number(struct task_struct *t);
unsigned int ssi_pids_next(unsigned int nr, char *comm);

/* trace.c */
struct tracepoint *ssi_tracepoint_find(const char *name);
void ssi_tracepoint_synchronize(void);

int ssi_call_is_native(void);
void ssi_call_skip(struct pt_regs *regs, long ax);
void ssi_call_again(long number);
int ssi_call_flags(struct pt_regs *regs, int indirect, u64 *flags);

/* work.c */
struct workqueue_struct *ssi_workqueue(int max_active);
void ssi_work_init(struct work_struct *work, work_func_t f);
void ssi_work_queue(struct workqueue_struct *wq, struct work_struct *work);
unsigned int ssi_noio_save(void);
void ssi_noio_restore(unsigned int flags);
int ssi_thread_stopping(void);
int ssi_module_get(void);
void ssi_module_put(void);
void ssi_text_left(void);

#endif
