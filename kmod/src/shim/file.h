/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Plain records and numbers shared with sys/file.rs and wire/file.rs; sizes are asserted on both
 * sides.
 */
#ifndef SSI_FILE_H
#define SSI_FILE_H

#include <linux/types.h>
#include <linux/wait.h>

struct cred;
struct file;
struct iov_iter;
struct task_struct;
struct termios2;
struct vfsmount;
struct winsize;

/* Position of every file of ours; no file reaches it. */
#define SSI_POSITION 0x3fffffffffffffffLL

/* wire::file::can */
#define SSI_CAN_READ 1
#define SSI_CAN_WRITE 2
#define SSI_CAN_SEEK 4
#define SSI_CAN_PREAD 8
#define SSI_CAN_PWRITE 16

/* wire::file::Op */
#define SSI_HOW_APPEND 4
#define SSI_HOW_DSYNC 8
#define SSI_HOW_SYNC 16
#define SSI_HOW_NO_TTIN 32
#define SSI_HOW_NO_TTOU 64

struct ssi_fd {
	u64 file;
	u32 fd, cloexec;
};

struct ssi_file_facts {
	u64 pos;
	u32 mode, rdev_major, rdev_minor, uid, gid, flags, can;
	u32 anonymous, internal, unlinked, path_only, plain_io, locked;
	u32 reserved[3];
};

/* wire::file::Attr */
struct ssi_attr {
	u64 ino, size, blocks, attributes, attributes_mask;
	s64 sec[4];
	u32 nsec[4];
	u32 dev_major, dev_minor, rdev_major, rdev_minor;
	u32 mode, nlink, uid, gid, blksize, mask;
};

/* wire::file::SetAttr */
struct ssi_setattr {
	u64 size;
	s64 sec[2];
	u32 nsec[2];
	u32 valid, mode, uid, gid;
};

/* mm.c */
extern struct vfsmount *ssi_mnt;

/* file.c */
int ssi_fds_get(struct task_struct *t, struct ssi_fd *v, int max);
void ssi_fds_close(void);
int ssi_fd_take(int cloexec);
void ssi_fd_drop(int fd);
void ssi_fd_install(int fd, struct file *file);
u64 ssi_fd_limit(u64 limit);
void ssi_filp_get(struct file *f);
void ssi_filp_put(struct file *f);
void ssi_filp_put_now(struct file *f);
struct file *ssi_filp_open(const char *path, int flags);
void *ssi_file_proxy(struct file *f);
int ssi_file_look(struct task_struct *t, struct file *f, struct ssi_file_facts *r, char *path, int len);
u32 ssi_file_flags(struct file *f);
u32 ssi_file_set_flags(struct file *f, u32 value, u32 mask);
struct file *ssi_proxy_new(const char *name, u32 mode, u32 uid, u32 gid, u32 major, u32 minor,
			   u32 flags, u32 can, void *proxy);
void ssi_poll_wake(wait_queue_head_t *head, u32 events);
size_t ssi_iter_count(struct iov_iter *i);
size_t ssi_iter_from(void *to, size_t n, struct iov_iter *i);
size_t ssi_iter_to(const void *from, size_t n, struct iov_iter *i);
void ssi_iter_revert(struct iov_iter *i, size_t n);
int ssi_iter_writable(const struct iov_iter *i, size_t n);
u32 ssi_caller_tgid(void);
int ssi_caller_read(void *to, u64 from, size_t n);
void ssi_raise(int sig);
int ssi_tty_signals(void);
ssize_t ssi_file_read(struct file *f, void *buf, size_t n, s64 pos);
ssize_t ssi_file_write(struct file *f, const void *buf, size_t n, s64 pos, int how);
s64 ssi_file_seek(struct file *f, s64 offset, int whence);
int ssi_file_fsync(struct file *f, s64 start, s64 end, int datasync);
int ssi_file_fallocate(struct file *f, int mode, s64 offset, s64 len);
int ssi_file_getattr(struct file *f, struct ssi_attr *a);
int ssi_file_setattr(struct file *f, const struct ssi_setattr *a);
long ssi_file_ioctl(struct file *f, u32 cmd, u64 arg);
int ssi_tty_termios(struct file *f, struct termios2 *to);
int ssi_tty_winsize(struct file *f, struct winsize *to);
int ssi_pipe_bytes(struct file *f);
const struct cred *ssi_creds_of_file(struct file *f);
void ssi_creds_revert(const struct cred *old);
int ssi_take_signal(int sig);
void *ssi_watch_new(struct file *f, u64 id);
void ssi_watch_free(void *watch);
u32 ssi_file_poll(struct file *f);
void ssi_thread_interruptible(void);
void ssi_thread_interrupt(struct task_struct *t);
void ssi_thread_settle(void);
struct task_struct *ssi_current_get(void);

/* Implemented in sys/file.rs. */
ssize_t ssi_rs_file_read(void *proxy, struct file *f, s64 pos, struct iov_iter *to);
ssize_t ssi_rs_file_write(void *proxy, struct file *f, s64 pos, int how, struct iov_iter *from);
u32 ssi_rs_file_poll(void *proxy, struct file *f, u32 events, int notify);
long ssi_rs_file_ioctl(void *proxy, struct file *f, u32 cmd, u64 arg);
s64 ssi_rs_file_seek(void *proxy, struct file *f, s64 offset, int whence);
int ssi_rs_file_fsync(void *proxy, struct file *f, s64 start, s64 end, int datasync);
int ssi_rs_file_fallocate(void *proxy, struct file *f, int mode, s64 offset, s64 len);
int ssi_rs_file_getattr(void *proxy, struct ssi_attr *a);
int ssi_rs_file_setattr(void *proxy, const struct ssi_setattr *a);
void *ssi_rs_file_poll_head(void *proxy);
void ssi_rs_file_get(void *proxy);
void ssi_rs_file_put(void *proxy);
void ssi_rs_file_closed(void *proxy);
void ssi_rs_file_ready(u64 id);

#endif
