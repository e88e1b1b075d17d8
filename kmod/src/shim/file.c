// SPDX-License-Identifier: GPL-2.0-only
/*
 * Files: tables of descriptors, the files of ours that stand for files open elsewhere, and
 * operations on real files for others. Which of them is called, when and with what, is decided in
 * Rust.
 */
#include <linux/module.h>
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/falloc.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/filelock.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/magic.h>
#include <linux/mount.h>
#include <linux/pipe_fs_i.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/tty.h>
#include <linux/uaccess.h>
#include <linux/uio.h>
#include <linux/workqueue.h>
#include "file.h"

static_assert(sizeof(struct ssi_fd) == 16);
static_assert(sizeof(struct ssi_file_facts) == 72);
static_assert(sizeof(struct ssi_attr) == 128);
static_assert(sizeof(struct ssi_setattr) == 48);

/* ---- Descriptors. ---- */

struct fd_walk {
	struct ssi_fd *v;
	struct files_struct *files;
	int max, n;
};

static int fd_note(const void *p, struct file *file, unsigned int fd)
{
	struct fd_walk *w = (struct fd_walk *)p;

	if (w->n < w->max) {
		struct ssi_fd *d = &w->v[w->n];

		get_file(file);
		d->file = (unsigned long)file;
		d->fd = fd;
		d->cloexec = close_on_exec(fd, w->files);
	}
	w->n++;
	return 0;
}

/*
 * Descriptors of `t` (NULL: the caller) in ascending order; each of the first `max` has a reference
 * on its file. Returns how many there are.
 */
int ssi_fds_get(struct task_struct *t, struct ssi_fd *v, int max)
{
	struct fd_walk w = { .v = v, .max = max };

	if (!t)
		t = current;
	task_lock(t);
	w.files = t->files;
	iterate_fd(w.files, 0, fd_note, &w);
	task_unlock(t);
	return w.n;
}

static int fd_number(const void *p, struct file *file, unsigned int fd)
{
	return fd + 1;
}

/* Closes everything the caller has open. */
void ssi_fds_close(void)
{
	int n;

	while ((n = iterate_fd(current->files, 0, fd_number, NULL)) > 0) {
		struct file *file = file_close_fd(n - 1);

		if (file)
			filp_close(file, current->files);
	}
}

int ssi_fd_take(int cloexec)
{
	return get_unused_fd_flags(cloexec ? O_CLOEXEC : 0);
}

void ssi_fd_drop(int fd)
{
	put_unused_fd(fd);
}

/* Consumes a reference. */
void ssi_fd_install(int fd, struct file *file)
{
	fd_install(fd, file);
}

/* Sets the caller's limit of descriptors; returns what it was. */
u64 ssi_fd_limit(u64 limit)
{
	struct rlimit *r = &current->signal->rlim[RLIMIT_NOFILE];
	u64 old;

	task_lock(current->group_leader);
	old = r->rlim_cur;
	r->rlim_cur = limit;
	task_unlock(current->group_leader);
	return old;
}

void ssi_filp_get(struct file *f)
{
	get_file(f);
}

void ssi_filp_put(struct file *f)
{
	fput(f);
}

/* As ssi_filp_put(); if it was the last reference, the file is released before this returns. */
void ssi_filp_put_now(struct file *f)
{
	__fput_sync(f);
}

struct file *ssi_filp_open(const char *path, int flags)
{
	return filp_open(path, flags, 0);
}

/* ---- What a file is. ---- */

static const struct file_operations regular_fops, stream_fops;

static bool is_proxy(const struct file *f)
{
	return f->f_op == &regular_fops || f->f_op == &stream_fops;
}

/* The Rust side of a file of ours, NULL for another. */
void *ssi_file_proxy(struct file *f)
{
	return is_proxy(f) ? f->private_data : NULL;
}

static bool listed(struct list_head *locks, struct file *f, fl_owner_t owner)
{
	struct file_lock_core *c;

	list_for_each_entry(c, locks, flc_list)
		if (c->flc_file == f || (owner && c->flc_owner == owner))
			return true;
	return false;
}

static bool is_locked(struct file *f, fl_owner_t owner)
{
	struct file_lock_context *ctx = locks_inode_context(file_inode(f));
	bool r = false;

	if (f->f_flags & FASYNC)
		return true;
	if (ctx) {
		spin_lock(&ctx->flc_lock);
		r = listed(&ctx->flc_flock, f, NULL) || listed(&ctx->flc_posix, f, owner) ||
		    listed(&ctx->flc_lease, f, NULL);
		spin_unlock(&ctx->flc_lock);
	}
	return r;
}

/* Facts and path of a file that `t` (NULL: the caller) has open. Returns the path's length or errno. */
int ssi_file_look(struct task_struct *t, struct file *f, struct ssi_file_facts *r, char *path, int len)
{
	struct inode *inode = file_inode(f);
	struct super_block *sb = inode->i_sb;
	fl_owner_t owner;
	char *p;
	int n;

	if (!t)
		t = current;
	task_lock(t);
	owner = t->files;
	task_unlock(t);
	memset(r, 0, sizeof(*r));
	r->pos = f->f_pos;
	r->mode = inode->i_mode;
	r->rdev_major = MAJOR(inode->i_rdev);
	r->rdev_minor = MINOR(inode->i_rdev);
	r->uid = from_kuid(&init_user_ns, inode->i_uid);
	r->gid = from_kgid(&init_user_ns, inode->i_gid);
	r->flags = f->f_flags;
	r->can = (f->f_mode & FMODE_READ ? SSI_CAN_READ : 0) |
		 (f->f_mode & FMODE_WRITE ? SSI_CAN_WRITE : 0) |
		 (f->f_mode & FMODE_LSEEK ? SSI_CAN_SEEK : 0) |
		 (f->f_mode & FMODE_PREAD ? SSI_CAN_PREAD : 0) |
		 (f->f_mode & FMODE_PWRITE ? SSI_CAN_PWRITE : 0);
	r->anonymous = IS_ANON_FILE(inode) || sb->s_magic == ANON_INODE_FS_MAGIC;
	r->internal = !!(sb->s_flags & SB_NOUSER);
	r->unlinked = d_unlinked(f->f_path.dentry);
	r->path_only = !!(f->f_mode & FMODE_PATH);
	r->plain_io = (!(f->f_mode & FMODE_READ) || f->f_op->read_iter) &&
		      (!(f->f_mode & FMODE_WRITE) || f->f_op->write_iter);
	r->locked = !r->path_only && is_locked(f, owner);
	p = d_path(&f->f_path, path, len);
	if (IS_ERR(p))
		return PTR_ERR(p);
	n = strlen(p);
	memmove(path, p, n);
	return n;
}

u32 ssi_file_flags(struct file *f)
{
	return READ_ONCE(f->f_flags);
}

/* Sets those flags of `mask` as `value` says; returns all there are now. */
u32 ssi_file_set_flags(struct file *f, u32 value, u32 mask)
{
	u32 r;

	if (IS_APPEND(file_inode(f)))
		mask &= ~O_APPEND;
	spin_lock(&f->f_lock);
	r = (f->f_flags & ~mask) | (value & mask);
	if (r != f->f_flags) {
		f->f_flags = r;
		f->f_iocb_flags = iocb_flags(f);
	}
	spin_unlock(&f->f_lock);
	return r;
}

/* ---- Files of ours. ---- */


/* The position of every file of ours: the real one is at home. */
#define HERE SSI_POSITION

static int how_of(const struct kiocb *k)
{
	return (k->ki_flags & IOCB_APPEND ? SSI_HOW_APPEND : 0) |
	       (k->ki_flags & IOCB_DSYNC ? SSI_HOW_DSYNC : 0) |
	       (k->ki_flags & IOCB_SYNC ? SSI_HOW_SYNC : 0);
}

static ssize_t proxy_read_iter(struct kiocb *k, struct iov_iter *to)
{
	ssize_t r = ssi_rs_file_read(k->ki_filp->private_data, k->ki_filp,
				     k->ki_pos == HERE ? -1 : k->ki_pos, to);

	if (r > 0 && k->ki_pos != HERE)
		k->ki_pos += r;
	return r;
}

static ssize_t proxy_write_iter(struct kiocb *k, struct iov_iter *from)
{
	ssize_t r = ssi_rs_file_write(k->ki_filp->private_data, k->ki_filp,
				      k->ki_pos == HERE ? -1 : k->ki_pos, how_of(k), from);

	if (r > 0 && k->ki_pos != HERE)
		k->ki_pos += r;
	if (r == -EPIPE && S_ISFIFO(file_inode(k->ki_filp)->i_mode) &&
	    !(k->ki_flags & IOCB_NOSIGNAL))
		send_sig(SIGPIPE, current, 0);
	return r;
}

static ssize_t stream_read_iter(struct kiocb *k, struct iov_iter *to)
{
	return ssi_rs_file_read(k->ki_filp->private_data, k->ki_filp, -1, to);
}

static ssize_t stream_write_iter(struct kiocb *k, struct iov_iter *from)
{
	k->ki_pos = HERE;
	return proxy_write_iter(k, from);
}

static __poll_t proxy_poll(struct file *f, poll_table *pt)
{
	wait_queue_head_t *head = ssi_rs_file_poll_head(f->private_data);

	poll_wait(f, head, pt);
	return (__force __poll_t)ssi_rs_file_poll(f->private_data, f,
						   (__force u32)poll_requested_events(pt),
						   waitqueue_active(head));
}

static long proxy_ioctl(struct file *f, unsigned int cmd, unsigned long arg)
{
	return ssi_rs_file_ioctl(f->private_data, f, cmd, arg);
}

static loff_t proxy_llseek(struct file *f, loff_t offset, int whence)
{
	return ssi_rs_file_seek(f->private_data, f, offset, whence);
}

static int proxy_fsync(struct file *f, loff_t start, loff_t end, int datasync)
{
	return ssi_rs_file_fsync(f->private_data, f, start, end, datasync);
}

static long proxy_fallocate(struct file *f, int mode, loff_t offset, loff_t len)
{
	return ssi_rs_file_fallocate(f->private_data, f, mode, offset, len);
}

/* A lock here would say nothing at home. */
static int proxy_lock(struct file *f, int cmd, struct file_lock *fl)
{
	return fl->c.flc_type == F_UNLCK ? 0 : -ENOLCK;
}

static int proxy_release(struct inode *inode, struct file *f)
{
	void *proxy = f->private_data;

	spin_lock(&inode->i_lock);
	inode->i_private = NULL;
	spin_unlock(&inode->i_lock);
	ssi_rs_file_closed(proxy);
	ssi_rs_file_put(proxy);
	return 0;
}

static const struct file_operations regular_fops = {
	.owner = THIS_MODULE,
	.llseek = proxy_llseek,
	.read_iter = proxy_read_iter,
	.write_iter = proxy_write_iter,
	.unlocked_ioctl = proxy_ioctl,
	.fsync = proxy_fsync,
	.fallocate = proxy_fallocate,
	.lock = proxy_lock,
	.flock = proxy_lock,
	.splice_read = copy_splice_read,
	.splice_write = iter_file_splice_write,
	.release = proxy_release,
};

static const struct file_operations stream_fops = {
	.owner = THIS_MODULE,
	.read_iter = stream_read_iter,
	.write_iter = stream_write_iter,
	.poll = proxy_poll,
	.unlocked_ioctl = proxy_ioctl,
	.fsync = proxy_fsync,
	.lock = proxy_lock,
	.flock = proxy_lock,
	.splice_read = copy_splice_read,
	.splice_write = iter_file_splice_write,
	.release = proxy_release,
};

/* The inode may outlive its file: the Rust side is found under i_lock, with a reference. */
static void *inode_proxy(struct inode *inode)
{
	void *proxy;

	spin_lock(&inode->i_lock);
	proxy = inode->i_private;
	if (proxy)
		ssi_rs_file_get(proxy);
	spin_unlock(&inode->i_lock);
	return proxy;
}

static struct timespec64 time_of(const struct ssi_attr *a, int i)
{
	return (struct timespec64){ .tv_sec = a->sec[i], .tv_nsec = a->nsec[i] };
}

static int proxy_getattr(struct mnt_idmap *idmap, const struct path *path, struct kstat *s, u32 mask,
			 unsigned int flags)
{
	struct inode *inode = d_inode(path->dentry);
	void *proxy = inode_proxy(inode);
	struct ssi_attr a;
	int r;

	if (!proxy) {
		generic_fillattr(idmap, mask, inode, s);
		return 0;
	}
	r = ssi_rs_file_getattr(proxy, &a);
	ssi_rs_file_put(proxy);
	if (r)
		return r;
	s->result_mask = a.mask;
	s->mode = a.mode;
	s->nlink = a.nlink;
	s->blksize = a.blksize;
	s->attributes = a.attributes;
	s->attributes_mask = a.attributes_mask;
	s->ino = a.ino;
	s->dev = MKDEV(a.dev_major, a.dev_minor);
	s->rdev = MKDEV(a.rdev_major, a.rdev_minor);
	s->uid = make_kuid(&init_user_ns, a.uid);
	s->gid = make_kgid(&init_user_ns, a.gid);
	s->size = a.size;
	s->blocks = a.blocks;
	s->atime = time_of(&a, 0);
	s->mtime = time_of(&a, 1);
	s->ctime = time_of(&a, 2);
	s->btime = time_of(&a, 3);
	return 0;
}

static const u32 attr_bits[] = { ATTR_SIZE, ATTR_MODE, ATTR_UID, ATTR_GID, ATTR_ATIME, ATTR_MTIME,
				 ATTR_ATIME_SET, ATTR_MTIME_SET };

static int proxy_setattr(struct mnt_idmap *idmap, struct dentry *dentry, struct iattr *attr)
{
	void *proxy = inode_proxy(d_inode(dentry));
	struct ssi_setattr a = {
		.size = attr->ia_size,
		.sec = { attr->ia_atime.tv_sec, attr->ia_mtime.tv_sec },
		.nsec = { attr->ia_atime.tv_nsec, attr->ia_mtime.tv_nsec },
		.mode = attr->ia_mode & 07777,
		.uid = from_kuid(&init_user_ns, attr->ia_uid),
		.gid = from_kgid(&init_user_ns, attr->ia_gid),
	};
	int i, r;

	if (!proxy)
		return -EIO;
	for (i = 0; i < ARRAY_SIZE(attr_bits); i++)
		if (attr->ia_valid & attr_bits[i])
			a.valid |= 1 << i;
	r = ssi_rs_file_setattr(proxy, &a);
	ssi_rs_file_put(proxy);
	return r;
}

static const struct inode_operations proxy_iops = {
	.getattr = proxy_getattr,
	.setattr = proxy_setattr,
};

/*
 * A file that stands for one at home. Takes over the caller's reference on `proxy` unless it fails.
 * `mode`, `flags` and `can` were checked by the caller; the name is what /proc shows.
 */
struct file *ssi_proxy_new(const char *name, u32 mode, u32 uid, u32 gid, u32 major, u32 minor,
			   u32 flags, u32 can, void *proxy)
{
	const fmode_t position = FMODE_LSEEK | FMODE_PREAD | FMODE_PWRITE;
	const struct file_operations *fops = S_ISREG(mode) ? &regular_fops : &stream_fops;
	struct inode *inode = new_inode(ssi_mnt->mnt_sb);
	struct file *f;

	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->i_ino = get_next_ino();
	inode->i_mode = mode;
	inode->i_uid = make_kuid(&init_user_ns, uid);
	inode->i_gid = make_kgid(&init_user_ns, gid);
	inode->i_rdev = MKDEV(major, minor);
	inode->i_op = &proxy_iops;
	simple_inode_init_ts(inode);
	f = alloc_file_pseudo(inode, ssi_mnt, name, flags & (O_ACCMODE | O_APPEND | O_NONBLOCK), fops);
	if (IS_ERR(f)) {
		iput(inode);
		return f;
	}
	/* alloc_file_pseudo() takes no reference on the module, the last fput() drops one. */
	__module_get(THIS_MODULE);
	f->f_flags = flags;
	f->f_mode &= ~position;
	if (S_ISREG(mode)) {
		f->f_mode |= (can & SSI_CAN_SEEK ? FMODE_LSEEK : 0) |
			     (can & SSI_CAN_PREAD ? FMODE_PREAD : 0) |
			     (can & SSI_CAN_PWRITE ? FMODE_PWRITE : 0);
		f->f_pos = HERE;
	} else {
		stream_open(inode, f);
	}
	f->private_data = proxy;
	inode->i_private = proxy;
	return f;
}

void ssi_poll_wake(wait_queue_head_t *head, u32 events)
{
	wake_up_poll(head, (__force __poll_t)events);
}

size_t ssi_iter_count(struct iov_iter *i)
{
	return iov_iter_count(i);
}

size_t ssi_iter_from(void *to, size_t n, struct iov_iter *i)
{
	return copy_from_iter(to, n, i);
}

size_t ssi_iter_to(const void *from, size_t n, struct iov_iter *i)
{
	return copy_to_iter(from, n, i);
}

void ssi_iter_revert(struct iov_iter *i, size_t n)
{
	iov_iter_revert(i, n);
}

/* Whether the first `n` bytes can be written now, as far as that can be told. */
int ssi_iter_writable(const struct iov_iter *i, size_t n)
{
	return fault_in_iov_iter_writeable(i, n) != n;
}

u32 ssi_caller_tgid(void)
{
	return current->tgid;
}

int ssi_caller_read(void *to, u64 from, size_t n)
{
	return copy_from_user(to, (const void __user *)from, n) ? -EFAULT : 0;
}

void ssi_raise(int sig)
{
	send_sig(sig, current, 0);
}

/* Bits of SSI_HOW_NO_TTIN and SSI_HOW_NO_TTOU. */
int ssi_tty_signals(void)
{
	struct sighand_struct *h = current->sighand;
	int r = 0;

	spin_lock_irq(&h->siglock);
	if (sigismember(&current->blocked, SIGTTIN) || h->action[SIGTTIN - 1].sa.sa_handler == SIG_IGN)
		r |= SSI_HOW_NO_TTIN;
	if (sigismember(&current->blocked, SIGTTOU) || h->action[SIGTTOU - 1].sa.sa_handler == SIG_IGN)
		r |= SSI_HOW_NO_TTOU;
	spin_unlock_irq(&h->siglock);
	return r;
}

/* ---- Operations at home. `pos` below 0 is the file's own position. ---- */

static ssize_t transfer(struct file *f, void *buf, size_t n, s64 pos, int how, bool write)
{
	bool own = pos < 0 && !(f->f_mode & FMODE_STREAM);
	bool lock = own && (f->f_mode & FMODE_ATOMIC_POS);
	struct kvec v = { .iov_base = buf, .iov_len = n };
	struct iov_iter iter;
	struct kiocb k;
	ssize_t r;

	if (lock)
		mutex_lock(&f->f_pos_lock);
	init_sync_kiocb(&k, f);
	k.ki_pos = own ? f->f_pos : pos < 0 ? 0 : pos;
	if (how & SSI_HOW_APPEND)
		k.ki_flags |= IOCB_APPEND;
	if (how & SSI_HOW_DSYNC)
		k.ki_flags |= IOCB_DSYNC;
	if (how & SSI_HOW_SYNC)
		k.ki_flags |= IOCB_DSYNC | IOCB_SYNC;
	iov_iter_kvec(&iter, write ? ITER_SOURCE : ITER_DEST, &v, 1, n);
	r = write ? vfs_iocb_iter_write(f, &k, &iter) : vfs_iocb_iter_read(f, &k, &iter);
	if (own && r >= 0)
		f->f_pos = k.ki_pos;
	if (lock)
		mutex_unlock(&f->f_pos_lock);
	return r;
}

ssize_t ssi_file_read(struct file *f, void *buf, size_t n, s64 pos)
{
	return transfer(f, buf, n, pos, 0, false);
}

ssize_t ssi_file_write(struct file *f, const void *buf, size_t n, s64 pos, int how)
{
	return transfer(f, (void *)buf, n, pos, how, true);
}

s64 ssi_file_seek(struct file *f, s64 offset, int whence)
{
	bool lock = f->f_mode & FMODE_ATOMIC_POS;
	loff_t r;

	if (whence < 0 || whence > SEEK_MAX)
		return -EINVAL;
	if (lock)
		mutex_lock(&f->f_pos_lock);
	r = vfs_llseek(f, offset, whence);
	if (lock)
		mutex_unlock(&f->f_pos_lock);
	return r;
}

int ssi_file_fsync(struct file *f, s64 start, s64 end, int datasync)
{
	if (start < 0 || end < start)
		return -EINVAL;
	return vfs_fsync_range(f, start, end, datasync);
}

int ssi_file_fallocate(struct file *f, int mode, s64 offset, s64 len)
{
	return vfs_fallocate(f, mode, offset, len);
}

int ssi_file_getattr(struct file *f, struct ssi_attr *a)
{
	struct kstat s;
	const struct timespec64 *t[4] = { &s.atime, &s.mtime, &s.ctime, &s.btime };
	int i, r = vfs_getattr_nosec(&f->f_path, &s, STATX_BASIC_STATS | STATX_BTIME,
				     AT_STATX_SYNC_AS_STAT);

	if (r)
		return r;
	memset(a, 0, sizeof(*a));
	a->ino = s.ino;
	a->size = s.size;
	a->blocks = s.blocks;
	a->attributes = s.attributes;
	a->attributes_mask = s.attributes_mask;
	for (i = 0; i < 4; i++) {
		if (i == 3 && !(s.result_mask & STATX_BTIME))
			break;
		a->sec[i] = t[i]->tv_sec;
		a->nsec[i] = t[i]->tv_nsec;
	}
	a->dev_major = MAJOR(s.dev);
	a->dev_minor = MINOR(s.dev);
	a->rdev_major = MAJOR(s.rdev);
	a->rdev_minor = MINOR(s.rdev);
	a->mode = s.mode;
	a->nlink = s.nlink;
	a->uid = from_kuid(&init_user_ns, s.uid);
	a->gid = from_kgid(&init_user_ns, s.gid);
	a->blksize = s.blksize;
	a->mask = s.result_mask & (STATX_BASIC_STATS | STATX_BTIME);
	return 0;
}

int ssi_file_setattr(struct file *f, const struct ssi_setattr *a)
{
	struct dentry *dentry = f->f_path.dentry;
	struct inode *inode = d_inode(dentry);
	struct mnt_idmap *idmap = file_mnt_idmap(f);
	struct iattr attr = {
		.ia_size = a->size,
		.ia_mode = (inode->i_mode & S_IFMT) | (a->mode & 07777),
		.ia_uid = make_kuid(&init_user_ns, a->uid),
		.ia_gid = make_kgid(&init_user_ns, a->gid),
		.ia_atime = { .tv_sec = a->sec[0], .tv_nsec = a->nsec[0] },
		.ia_mtime = { .tv_sec = a->sec[1], .tv_nsec = a->nsec[1] },
		.ia_valid = ATTR_CTIME,
		.ia_file = f,
	};
	int i, r;

	for (i = 0; i < ARRAY_SIZE(attr_bits); i++)
		if (a->valid & (1 << i))
			attr.ia_valid |= attr_bits[i];
	if (a->valid & 1) {
		if (!S_ISREG(inode->i_mode) || !(f->f_mode & FMODE_WRITE) || (s64)a->size < 0)
			return -EINVAL;
		if (IS_APPEND(inode))
			return -EPERM;
		attr.ia_valid |= ATTR_FILE;
	}
	r = mnt_want_write_file(f);
	if (r)
		return r;
	r = inode_lock_killable(inode);
	if (!r) {
		if (attr.ia_valid & (ATTR_SIZE | ATTR_UID | ATTR_GID)) {
			attr.ia_valid |= ATTR_KILL_PRIV;
			attr.ia_valid |= setattr_should_drop_suidgid(idmap, inode);
		}
		r = notify_change(idmap, dentry, &attr, NULL);
		inode_unlock(inode);
	}
	mnt_drop_write_file(f);
	return r;
}

/* `arg` is a number, or an address of the caller's memory. */
long ssi_file_ioctl(struct file *f, u32 cmd, u64 arg)
{
	long r = f->f_op->unlocked_ioctl ? f->f_op->unlocked_ioctl(f, cmd, arg) : -ENOTTY;

	return r == -ENOIOCTLCMD ? -ENOTTY : r;
}

static struct tty_struct *tty_of(struct file *f)
{
	return S_ISCHR(file_inode(f)->i_mode) && f->private_data ?
		       ((struct tty_file_private *)f->private_data)->tty : NULL;
}

/* What TCGETS tells of a terminal, in the layout of its termios2. */
int ssi_tty_termios(struct file *f, struct termios2 *to)
{
	struct tty_struct *tty = tty_of(f);
	struct ktermios k;

	if (!tty)
		return -ENOTTY;
	down_read(&tty->termios_rwsem);
	k = tty->termios;
	up_read(&tty->termios_rwsem);
	memset(to, 0, sizeof(*to));
	to->c_iflag = k.c_iflag;
	to->c_oflag = k.c_oflag;
	to->c_cflag = k.c_cflag;
	to->c_lflag = k.c_lflag;
	to->c_line = k.c_line;
	memcpy(to->c_cc, k.c_cc, sizeof(to->c_cc));
	to->c_ispeed = k.c_ispeed;
	to->c_ospeed = k.c_ospeed;
	return 0;
}

int ssi_tty_winsize(struct file *f, struct winsize *to)
{
	struct tty_struct *tty = tty_of(f);

	if (!tty)
		return -ENOTTY;
	mutex_lock(&tty->winsize_mutex);
	*to = tty->winsize;
	mutex_unlock(&tty->winsize_mutex);
	return 0;
}

/* Bytes that a pipe holds. */
int ssi_pipe_bytes(struct file *f)
{
	struct pipe_inode_info *pipe = f->private_data;
	unsigned int at;
	int n = 0;

	if (!S_ISFIFO(file_inode(f)->i_mode) || !pipe)
		return -ENOTTY;
	mutex_lock(&pipe->mutex);
	for (at = pipe->tail; !pipe_empty(pipe->head, at); at++)
		n += pipe_buf(pipe, at)->len;
	mutex_unlock(&pipe->mutex);
	return n;
}

/* The caller acts with the rights of who opened the file, until ssi_creds_revert(). */
const struct cred *ssi_creds_of_file(struct file *f)
{
	return override_creds(f->f_cred);
}

void ssi_creds_revert(const struct cred *old)
{
	revert_creds(old);
}

/* Takes `sig` back that the caller sent to itself. Returns whether there was one. */
int ssi_take_signal(int sig)
{
	sigset_t others;
	kernel_siginfo_t info;
	enum pid_type type;
	int r = 0;

	siginitsetinv(&others, sigmask(sig));
	spin_lock_irq(&current->sighand->siglock);
	if (sigismember(&current->pending.signal, sig))
		r = dequeue_signal(&others, &info, &type) == sig;
	spin_unlock_irq(&current->sighand->siglock);
	return r;
}

/* ---- Waiting for a file to become ready. ---- */

struct watch {
	poll_table pt;
	struct work_struct work;
	u64 id;
	int n;
	struct {
		wait_queue_entry_t wait;
		wait_queue_head_t *head;
	} at[3];
};

static void watch_work(struct work_struct *work)
{
	ssi_rs_file_ready(container_of(work, struct watch, work)->id);
}

static int watch_wake(wait_queue_entry_t *wait, unsigned int mode, int sync, void *key)
{
	struct watch *w = wait->private;

	queue_work(system_dfl_wq, &w->work);
	return 0;
}

static void watch_queue(struct file *f, wait_queue_head_t *head, poll_table *pt)
{
	struct watch *w = container_of(pt, struct watch, pt);

	if (w->n == ARRAY_SIZE(w->at))
		return;
	w->at[w->n].head = head;
	init_waitqueue_func_entry(&w->at[w->n].wait, watch_wake);
	w->at[w->n].wait.private = w;
	add_wait_queue(head, &w->at[w->n].wait);
	w->n++;
}

/* From now on every event at `f`, which stays, brings ssi_rs_file_ready(id). */
void *ssi_watch_new(struct file *f, u64 id)
{
	struct watch *w = kzalloc(sizeof(*w), GFP_KERNEL);

	if (!w)
		return NULL;
	w->id = id;
	INIT_WORK(&w->work, watch_work);
	init_poll_funcptr(&w->pt, watch_queue);
	w->pt._key = ~(__poll_t)0;
	vfs_poll(f, &w->pt);
	return w;
}

/* Sleeps until ssi_rs_file_ready() will not be called any more. */
void ssi_watch_free(void *watch)
{
	struct watch *w = watch;
	int i;

	for (i = 0; i < w->n; i++)
		remove_wait_queue(w->at[i].head, &w->at[i].wait);
	cancel_work_sync(&w->work);
	kfree(w);
}

u32 ssi_file_poll(struct file *f)
{
	return (__force u32)vfs_poll(f, NULL);
}

/* ---- Threads that a signal of ours can interrupt. ---- */

#define INTERRUPT SIGUSR1

/* The caller becomes an ordinary thread that can be interrupted. */
void ssi_thread_interruptible(void)
{
	sched_set_normal(current, 0);
	allow_kernel_signal(INTERRUPT);
}

void ssi_thread_interrupt(struct task_struct *t)
{
	send_sig(INTERRUPT, t, 1);
}

void ssi_thread_settle(void)
{
	flush_signals(current);
}

struct task_struct *ssi_current_get(void)
{
	get_task_struct(current);
	return current;
}
