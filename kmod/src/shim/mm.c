// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory: the park area of puppets, mappings of an image, mappings whose pages are still elsewhere.
 */
#include <linux/module.h>
#include <linux/fs.h>
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/huge_mm.h>
#include <linux/hugetlb.h>
#include <linux/memcontrol.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/vmstat.h>
#include "mm.h"

static_assert(sizeof(struct ssi_vma) == 80);

/* Implemented in sys/mm.rs. */
int ssi_rs_park(void);
long ssi_rs_become(u64 token);
int ssi_rs_pager_lookup(void *pager, u64 addr, struct page **page);
void ssi_rs_pager_fetch(void *pager, u64 addr, u64 end, int interruptible);
void ssi_rs_pager_get(void *pager);
void ssi_rs_pager_put(void *pager);
void ssi_rs_pager_forget(void *pager, u64 start, u64 end);

/* ---- The pseudo file system of the module: park areas and forwarded files live on it. ---- */

struct vfsmount *ssi_mnt;
static const struct dentry_operations ssi_dentry_ops;

static int ssi_fs_init_context(struct fs_context *fc)
{
	struct pseudo_fs_context *c = init_pseudo(fc, 0x7373695f);

	if (!c)
		return -ENOMEM;
	c->dops = &ssi_dentry_ops;
	/* The park area is executable. */
	fc->s_iflags &= ~SB_I_NOEXEC;
	return 0;
}

static char *ssi_dname(struct dentry *d, char *buf, int len)
{
	int n = d->d_name.len + 1;

	if (n > len)
		return ERR_PTR(-ENAMETOOLONG);
	return memcpy(buf + len - n, d->d_name.name, n);
}

static const struct dentry_operations ssi_dentry_ops = {
	.d_dname = ssi_dname,
};

/* No .owner: the mount made at init would hold the module for ever. */
static struct file_system_type ssi_fs = {
	.name = "ssi",
	.init_fs_context = ssi_fs_init_context,
	.kill_sb = kill_anon_super,
};

/* Maps `page` where the fault is, and nothing beside it. */
static vm_fault_t map_alone(struct vm_fault *vmf, struct page *page)
{
	int r = vm_insert_page(vmf->vma, vmf->address & PAGE_MASK, page);

	return r && r != -EBUSY ? vmf_error(r) : VM_FAULT_NOPAGE;
}

/*
 * Ends a fault with `page`, whose reference it takes. A page that is returned to the fault's common
 * path belongs to its page-table entry a moment before it is unlocked; without another owner, as
 * the page cache is one, it can be freed in between. So only a page that is to be copied takes that
 * path, and one that is to be seen is mapped here.
 */
static vm_fault_t fault_with(struct vm_fault *vmf, struct page *page)
{
	vm_fault_t r;

	if (vmf->flags & FAULT_FLAG_WRITE) {
		lock_page(page);
		vmf->page = page;
		return VM_FAULT_LOCKED;
	}
	r = map_alone(vmf, page);
	put_page(page);
	return r;
}

/* ---- Park area: a code page that ends in `syscall`, the park page, the slots. ---- */

static struct page *code_page;

static vm_fault_t area_fault(struct vm_fault *vmf)
{
	const unsigned int mine = FAULT_FLAG_USER | FAULT_FLAG_INSTRUCTION | FAULT_FLAG_ALLOW_RETRY;
	struct page *page;

	if (vmf->pgoff == 1) {
		if ((vmf->flags & mine) != mine || current->mm != vmf->vma->vm_mm)
			return VM_FAULT_SIGBUS;
		release_fault_lock(vmf);
		/* Nothing below looks at vmf->vma: the callee may have unmapped it. */
		switch (ssi_rs_park()) {
		case 0:
			return VM_FAULT_RETRY;
		case 1:
			return VM_FAULT_NOPAGE | VM_FAULT_COMPLETED;
		}
		force_sig(SIGKILL);
		return VM_FAULT_RETRY;
	}
	if (vmf->pgoff == 0) {
		page = code_page;
		get_page(page);
	} else {
		page = alloc_page(GFP_HIGHUSER | __GFP_ZERO);
		if (!page)
			return VM_FAULT_OOM;
	}
	return fault_with(vmf, page);
}

static const struct vm_operations_struct area_vm_ops = {
	.fault = area_fault,
};

static int area_mmap(struct file *file, struct vm_area_struct *vma)
{
	vma->vm_ops = &area_vm_ops;
	vm_flags_set(vma, VM_DONTCOPY | VM_DONTDUMP | VM_DONTEXPAND | VM_MIXEDMAP);
	return 0;
}

static const struct file_operations area_fops = {
	.owner = THIS_MODULE,
	.mmap = area_mmap,
};

static struct file *area_file(void)
{
	struct inode *inode = new_inode(ssi_mnt->mnt_sb);
	struct file *file;

	if (!inode)
		return ERR_PTR(-ENOMEM);
	inode->i_ino = get_next_ino();
	inode->i_mode = S_IFREG | 0600;
	simple_inode_init_ts(inode);
	file = alloc_file_pseudo(inode, ssi_mnt, "[ssi]", O_RDWR, &area_fops);
	if (IS_ERR(file)) {
		iput(inode);
		return file;
	}
	/* alloc_file_pseudo() takes no reference on the module, the last fput() drops one. */
	__module_get(THIS_MODULE);
	return file;
}

/* Maps a park area with `slots` bytes of slots into the caller's memory; base or errno. */
long ssi_area_map(u64 at, u64 slots_bytes)
{
	struct file *file = area_file();
	unsigned long fixed = at ? MAP_FIXED_NOREPLACE : 0;
	unsigned long base, r;

	if (IS_ERR(file))
		return PTR_ERR(file);
	base = vm_mmap(file, at, 2 * PAGE_SIZE + slots_bytes, PROT_READ | PROT_EXEC,
		       MAP_PRIVATE | fixed, 0);
	if (!IS_ERR_VALUE(base)) {
		r = vm_mmap(file, base + 2 * PAGE_SIZE, slots_bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_FIXED, 2 * PAGE_SIZE);
		if (IS_ERR_VALUE(r)) {
			vm_munmap(base, 2 * PAGE_SIZE + slots_bytes);
			base = r;
		}
	}
	fput(file);
	return base;
}

long ssi_unmap(u64 start, u64 len)
{
	return vm_munmap(start, len);
}

/* ---- The control device. ---- */

static long dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	if (cmd != 0xb501)
		return -ENOTTY;
	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	return ssi_rs_become(arg);
}

static const struct file_operations dev_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = dev_ioctl,
};

static struct miscdevice dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ssi",
	.fops = &dev_fops,
	.mode = 0600,
};

int ssi_mm_init(void)
{
	u8 *code;
	int r;

	code_page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!code_page)
		return -ENOMEM;
	code = page_address(code_page);
	memset(code, 0xcc, PAGE_SIZE);
	code[PAGE_SIZE - 2] = 0x0f;
	code[PAGE_SIZE - 1] = 0x05;
	r = register_filesystem(&ssi_fs);
	if (r)
		goto page;
	ssi_mnt = kern_mount(&ssi_fs);
	if (IS_ERR(ssi_mnt)) {
		r = PTR_ERR(ssi_mnt);
		goto fs;
	}
	r = misc_register(&dev);
	if (r)
		goto mnt;
	return 0;
mnt:
	kern_unmount(ssi_mnt);
fs:
	unregister_filesystem(&ssi_fs);
page:
	put_page(code_page);
	return r;
}

void ssi_mm_exit(void)
{
	misc_deregister(&dev);
	kern_unmount(ssi_mnt);
	unregister_filesystem(&ssi_fs);
	put_page(code_page);
}

/* ---- Looking at a memory. ---- */

/* 1 vdso, 2 one of its data areas, 3 another mapping made by the kernel, 0 an ordinary one. */
static u32 special_of(struct vm_area_struct *vma)
{
	const char *name;

	if (vma->vm_file || !vma->vm_ops || !vma->vm_ops->name)
		return 0;
	name = vma->vm_ops->name(vma);
	if (!name)
		return 0;
	if (!strcmp(name, "[vdso]"))
		return 1;
	if (!strncmp(name, "[vvar", 5))
		return 2;
	return 3;
}

/*
 * Records of the mappings of `mm`, without park areas; paths of files go to `paths`. Returns their
 * number, which may be larger than `max`.
 */
int ssi_vmas(struct mm_struct *mm, struct ssi_vma *v, int max, char *paths, u32 paths_len)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, 0);
	char *tmp = kmalloc(PATH_MAX, GFP_KERNEL);
	u32 used = 0;
	int n = 0;

	if (!tmp)
		return -ENOMEM;
	mmap_read_lock(mm);
	for_each_vma(vmi, vma) {
		if (vma->vm_ops == &area_vm_ops)
			continue;
		if (n < max) {
			struct ssi_vma *r = &v[n];

			memset(r, 0, sizeof(*r));
			r->start = vma->vm_start;
			r->end = vma->vm_end;
			r->pgoff = vma->vm_pgoff;
			r->flags = vma->vm_flags;
			r->has_anon = !!vma->anon_vma;
			r->special = special_of(vma);
			if (vma->vm_file) {
				/* As /proc/PID/maps names it: on overlayfs not what is below. */
				const struct inode *inode = file_user_inode(vma->vm_file);
				char *path = d_path(file_user_path(vma->vm_file), tmp, PATH_MAX);

				r->major = MAJOR(inode->i_sb->s_dev);
				r->minor = MINOR(inode->i_sb->s_dev);
				r->ino = inode->i_ino;
				r->file_key = hash_ptr(vma->vm_file, 64);
				r->file_refs = file_count(vma->vm_file);
				r->file_vmas = 1;
				if (!IS_ERR(path) && used + strlen(path) <= paths_len) {
					r->path_offset = used;
					r->path_len = strlen(path);
					memcpy(paths + used, path, r->path_len);
					used += r->path_len;
				}
			}
		}
		n++;
	}
	mmap_read_unlock(mm);
	kfree(tmp);
	return n;
}

int ssi_exe_path(struct mm_struct *mm, char *buf, int len, u32 *major, u32 *minor, u64 *ino)
{
	struct file *file;
	char *path;
	int n = -ENOENT;

	rcu_read_lock();
	file = rcu_dereference(mm->exe_file);
	if (file && !get_file_rcu(&mm->exe_file))
		file = NULL;
	rcu_read_unlock();
	if (!file)
		return n;
	path = d_path(file_user_path(file), buf, len);
	if (!IS_ERR(path)) {
		n = strlen(path);
		memmove(buf, path, n);
	}
	*major = MAJOR(file_user_inode(file)->i_sb->s_dev);
	*minor = MINOR(file_user_inode(file)->i_sb->s_dev);
	*ino = file_user_inode(file)->i_ino;
	fput(file);
	return n;
}

/* Whether nothing was ever at `addr` of anonymous memory. With the lock of `mm` held. */
static bool is_hole(struct mm_struct *mm, unsigned long addr)
{
	bool hole = false;
	spinlock_t *ptl;
	pgd_t *pgd;
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmdp, pmd;

	pgd = pgd_offset(mm, addr);
	if (pgd_none(*pgd))
		return true;
	p4d = p4d_offset(pgd, addr);
	if (p4d_none(*p4d))
		return true;
	pud = pud_offset(p4d, addr);
	if (pud_none(*pud))
		return true;
	if (pud_leaf(*pud))
		return false;
	pmdp = pmd_offset(pud, addr);
	/* A table that is empty may be freed meanwhile. */
	rcu_read_lock();
	pmd = pmdp_get_lockless(pmdp);
	if (pmd_none(pmd)) {
		hole = true;
	} else if (pmd_present(pmd) && !pmd_leaf(pmd)) {
		ptl = pte_lockptr(mm, &pmd);
		spin_lock(ptl);
		if (pmd_same(pmd, pmdp_get_lockless(pmdp)))
			hole = pte_none(ptep_get(pte_offset_kernel(&pmd, addr)));
		spin_unlock(ptl);
	}
	rcu_read_unlock();
	return hole;
}

/* Why a page cannot be had: 0 it is a guard, which holds nothing; -EFAULT it is lost; else errno. */
static int why_not(struct vm_area_struct *vma, unsigned long addr)
{
	vm_fault_t r = handle_mm_fault(vma, addr, FAULT_FLAG_REMOTE, NULL);

	if (r & VM_FAULT_SIGSEGV)
		return 0;
	if (r & VM_FAULT_OOM)
		return -ENOMEM;
	return r & VM_FAULT_ERROR ? -EFAULT : -EAGAIN;
}

/*
 * Copies a page out of `mm`. 0: nothing was ever there, it reads as zeros; 1: copied; 2: it is the
 * file's own page, or lies behind its end (only if `file_is_known`). Negative: errno; with `nowait`
 * -EAGAIN for what needs waiting. Never changes the memory.
 */
int ssi_page_read(struct mm_struct *mm, u64 addr, void *to, int file_is_known, int nowait)
{
	struct vm_area_struct *vma;
	struct page *page;
	unsigned int flags = FOLL_FORCE | (nowait ? FOLL_NOWAIT : 0);
	int locked = 1;
	long n;
	int r;

	if (!nowait)
		mmap_read_lock(mm);
	else if (!mmap_read_trylock(mm))
		return -EAGAIN;
	vma = find_vma(mm, addr);
	if (!vma || vma->vm_start > addr) {
		mmap_read_unlock(mm);
		return 0;
	}
	if (!vma->vm_file)
		flags |= FOLL_DUMP;
	n = get_user_pages_remote(mm, addr, 1, flags, &page, &locked);
	if (n == -EFAULT && (flags & FOLL_DUMP)) {
		/* A hole, zeros that were only read, a huge page that is being moved, or an error. */
		if (!locked)
			return -EAGAIN;
		if (is_hole(mm, addr)) {
			r = 0;
			goto unlock;
		}
		n = get_user_pages_remote(mm, addr, 1, flags & ~FOLL_DUMP, &page, &locked);
		if (n == -EFAULT) {
			r = locked && !nowait ? why_not(vma, addr) : -EAGAIN;
			goto unlock;
		}
	}
	if (n == 1) {
		if (locked && vma->vm_file && !PageAnon(page) && file_is_known) {
			r = 2;
		} else {
			copy_page(to, page_address(page));
			r = 1;
		}
		put_page(page);
	} else {
		r = n == -EFAULT ? (file_is_known ? 2 : 0) : n < 0 ? n : -EAGAIN;
	}
unlock:
	if (locked)
		mmap_read_unlock(mm);
	return r;
}

/*
 * A page with a copy of `from`: `old`, whose reference it takes, if nobody else has it. A new one costs the
 * zeros the kernel fills it with.
 */
struct page *ssi_page_new(struct page *old, const void *from)
{
	struct page *page = old;

	if (page && page_count(page) != 1) {
		put_page(page);
		page = NULL;
	}
	if (!page)
		page = alloc_page(GFP_HIGHUSER | __GFP_NOWARN);
	if (page)
		copy_page(page_address(page), (void *)from);
	return page;
}

void ssi_page_get(struct page *page)
{
	get_page(page);
}

void ssi_page_put(struct page *page)
{
	put_page(page);
}

int ssi_page_is_zero(const void *p)
{
	return !memchr_inv(p, 0, PAGE_SIZE);
}

/* A memory that lost pages to the out-of-memory reaper can no longer be trusted. */
int ssi_mm_unstable(struct mm_struct *mm)
{
	return mm_flags_test(MMF_UNSTABLE, mm);
}

/* ---- Building a memory in the caller. ---- */

/* Anonymous without `file`. Address or errno. */
long ssi_map(struct file *file, u64 at, u64 len, u32 prot, u32 shared, u32 growsdown, u32 noreserve,
	     u64 offset)
{
	unsigned long flags = MAP_FIXED_NOREPLACE | (shared ? MAP_SHARED : MAP_PRIVATE);

	if (!file)
		flags |= MAP_ANONYMOUS;
	if (growsdown)
		flags |= MAP_GROWSDOWN;
	if (noreserve)
		flags |= MAP_NORESERVE;
	return vm_mmap(file, at, len, prot & (PROT_READ | PROT_WRITE | PROT_EXEC), flags, offset);
}

struct file *ssi_open(const char *path, int flags)
{
	return filp_open(path, flags, 0);
}

void ssi_file_put(struct file *f)
{
	fput(f);
}

/* Writes into the caller's memory even where it may only read. */
int ssi_write_forced(u64 to, const void *from, u32 len)
{
	return access_process_vm(current, to, (void *)from, len, FOLL_FORCE | FOLL_WRITE) == len ?
		       0 : -EFAULT;
}

void ssi_brk_set(u64 start_brk, u64 brk)
{
	struct mm_struct *mm = current->mm;

	mmap_write_lock(mm);
	spin_lock(&mm->arg_lock);
	mm->start_brk = start_brk;
	mm->brk = brk;
	spin_unlock(&mm->arg_lock);
	mmap_write_unlock(mm);
}

/* ---- Mappings whose pages are still elsewhere. ---- */

struct hook {
	refcount_t refs;
	void *pager;
	const struct vm_operations_struct *file_ops;	/* NULL: anonymous */

	/* Who brings pages in just now, and which; for that task's own faults. */
	struct task_struct *giver;
	u64 given_addr;
	const void *given;
	size_t given_bytes;
};

static const struct vm_operations_struct hook_vm_ops;

/* The hook of a mapping, if that is one of `pager`'s. */
static struct hook *hook_of(struct vm_area_struct *vma, const void *pager)
{
	struct hook *h = vma->vm_private_data;

	return vma->vm_ops == &hook_vm_ops && h->pager == pager ? h : NULL;
}

static void hook_put(struct hook *h)
{
	if (refcount_dec_and_test(&h->refs)) {
		ssi_rs_pager_put(h->pager);
		kfree(h);
	}
}

static void hook_open(struct vm_area_struct *vma)
{
	struct hook *h = vma->vm_private_data;

	refcount_inc(&h->refs);
}

static void hook_close(struct vm_area_struct *vma)
{
	struct hook *h = vma->vm_private_data;

	ssi_rs_pager_forget(h->pager, vma->vm_start, vma->vm_end);
	hook_put(h);
}

/* The page that the current task brings in at `addr`, with a reference. */
static struct page *given_page(const struct hook *h, u64 addr)
{
	struct page *page;

	if (READ_ONCE(h->giver) != current || addr - h->given_addr >= h->given_bytes)
		return NULL;
	page = vmalloc_to_page(h->given + (addr - h->given_addr));
	if (page)
		get_page(page);
	return page;
}

/*
 * Ends a fault with what the mapped file holds there. To see a page of a large folio, the common path
 * (finish_fault()) maps all of the folio: also pages whose own content is still elsewhere.
 */
static vm_fault_t file_fault(struct vm_fault *vmf, const struct hook *h)
{
	const vm_fault_t no_page = VM_FAULT_ERROR | VM_FAULT_NOPAGE | VM_FAULT_RETRY |
				   VM_FAULT_DONE_COW;
	struct page *page;
	vm_fault_t r;

	if (!h->file_ops)
		return VM_FAULT_SIGBUS;
	r = h->file_ops->fault(vmf);
	if (r & no_page || vmf->flags & FAULT_FLAG_WRITE)
		return r;
	page = vmf->page;
	if (!PageCompound(page) || PageHWPoison(page))
		return r;
	if (!(r & VM_FAULT_LOCKED))
		lock_page(page);
	r = (r & VM_FAULT_MAJOR) | map_alone(vmf, page);
	unlock_page(page);
	put_page(page);
	return r;
}

static vm_fault_t hook_fault(struct vm_fault *vmf)
{
	struct hook *h = vmf->vma->vm_private_data;
	u64 addr = vmf->address & PAGE_MASK;
	struct page *page;
	void *pager;
	u64 end;
	int found;

	if (vmf->flags & FAULT_FLAG_WRITE) {
		page = given_page(h, addr);
		if (page)
			return fault_with(vmf, page);
	}
	found = ssi_rs_pager_lookup(h->pager, addr, &page);
	if (found == 0 || (found == 4 && !h->file_ops)) {
		if (vmf->flags & FAULT_FLAG_WRITE) {
			page = alloc_page(GFP_HIGHUSER | __GFP_ZERO);
			if (!page)
				return VM_FAULT_OOM;
		} else {
			/* As the kernel does where nothing was ever written. */
			page = ZERO_PAGE(addr);
			get_page(page);
		}
	} else if (found != 1) {
		if (found == 2 || found == 4)
			return file_fault(vmf, h);
		if (found == 5 || !(vmf->flags & FAULT_FLAG_ALLOW_RETRY))
			return VM_FAULT_SIGBUS;
		if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT)
			return VM_FAULT_RETRY;
		pager = h->pager;
		end = vmf->vma->vm_end;
		found = !!(vmf->flags & FAULT_FLAG_INTERRUPTIBLE);
		ssi_rs_pager_get(pager);
		release_fault_lock(vmf);
		ssi_rs_pager_fetch(pager, addr, end, found);
		ssi_rs_pager_put(pager);
		return VM_FAULT_RETRY;
	}
	return fault_with(vmf, page);
}

static const struct vm_operations_struct hook_vm_ops = {
	.open = hook_open,
	.close = hook_close,
	.fault = hook_fault,
};

/* Gives the caller's mapping [start, end) to the pager; takes a reference on it. */
int ssi_hook(u64 start, u64 end, void *pager)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct hook *h = kzalloc(sizeof(*h), GFP_KERNEL);
	int r = -EINVAL;

	if (!h)
		return -ENOMEM;
	refcount_set(&h->refs, 1);
	h->pager = pager;
	mmap_write_lock(mm);
	vma = find_vma(mm, start);
	if (vma && vma->vm_start == start && vma->vm_end == end && !(vma->vm_flags & VM_SHARED) &&
	    (!vma->vm_ops || (vma->vm_file && vma->vm_ops->fault && !vma->vm_ops->close))) {
		vma_start_write(vma);
		h->file_ops = vma->vm_ops;
		vma->vm_private_data = h;
		/* Keeps merging, reclaim's walks, khugepaged and the rest away while it lasts. */
		vm_flags_set(vma, VM_MIXEDMAP);
		vma->vm_ops = &hook_vm_ops;
		ssi_rs_pager_get(pager);
		r = 0;
	}
	mmap_write_unlock(mm);
	if (r)
		kfree(h);
	return r;
}

/* Makes the hooked mappings of `pager` in `mm` ordinary ones. Returns how many there were. */
int ssi_unhook(struct mm_struct *mm, void *pager)
{
	struct vm_area_struct *vma;
	VMA_ITERATOR(vmi, mm, 0);
	int n = 0;

	mmap_write_lock(mm);
	for_each_vma(vmi, vma) {
		struct hook *h = hook_of(vma, pager);

		if (!h)
			continue;
		vma_start_write(vma);
		vma->vm_ops = h->file_ops;
		vma->vm_private_data = NULL;
		vm_flags_clear(vma, VM_MIXEDMAP);
		hook_put(h);
		n++;
	}
	mmap_write_unlock(mm);
	return n;
}

/*
 * Brings `count` pages from `addr` on into `mm` for good, as far as a hooked mapping of `pager` is
 * there: their number, 0 for no such mapping, -EAGAIN try again, else errno.
 */
int ssi_install(struct mm_struct *mm, u64 addr, int count, void *pager)
{
	struct vm_area_struct *vma;
	int locked = 1;
	long n;
	int r = 0;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, addr);
	if (vma && hook_of(vma, pager)) {
		n = min_t(u64, count, (vma->vm_end - addr) >> PAGE_SHIFT);
		n = get_user_pages_remote(mm, addr, n, FOLL_WRITE | FOLL_FORCE, NULL, &locked);
		r = n ? n : -EAGAIN;
	}
	if (locked)
		mmap_read_unlock(mm);
	return r;
}

/* Whether the machine and the control groups of `mm` are far from where who needs a page has to look for one first. */
static bool has_plenty(struct mm_struct *mm)
{
	unsigned long some = totalram_pages() / 32;
	struct mem_cgroup *first, *group;
	bool plenty = true;

	if (global_zone_page_state(NR_FREE_PAGES) < some)
		return false;
	first = get_mem_cgroup_from_mm(mm);
	for (group = first; group && plenty; group = parent_mem_cgroup(group)) {
		unsigned long most = min(READ_ONCE(group->memory.max), READ_ONCE(group->memory.high));

		plenty = most == PAGE_COUNTER_MAX || page_counter_read(&group->memory) + some < most;
	}
	mem_cgroup_put(first);
	return plenty;
}

/*
 * Copies `count` pages of data, which lie on pages of vmalloc(), into `mm` from `addr` on, where nothing
 * is yet: as many as go without waiting for another task, or for memory. Returns their number.
 */
int ssi_give(struct mm_struct *mm, u64 addr, const void *data, int count, void *pager)
{
	unsigned int noio = current->flags & PF_MEMALLOC_NOIO;
	struct vm_area_struct *vma;
	struct hook *h;
	long n = 0;

	if (!is_vmalloc_addr(data) || offset_in_page(data))
		return 0;
	if (!has_plenty(mm))
		return 0;
	if (!mmap_read_trylock(mm))
		return 0;
	vma = vma_lookup(mm, addr);
	h = vma ? hook_of(vma, pager) : NULL;
	if (!h || cmpxchg(&h->giver, NULL, current))
		goto unlock;
	n = min_t(u64, count, (vma->vm_end - addr) >> PAGE_SHIFT);
	h->given_addr = addr;
	h->given = data;
	h->given_bytes = n << PAGE_SHIFT;
	/* A group that is full after all must be able to swap, or it kills. */
	current->flags &= ~noio;
	/* The lock stays held, so the hook does. */
	n = get_user_pages_remote(mm, addr, n, FOLL_WRITE | FOLL_FORCE, NULL, NULL);
	current->flags |= noio;
	WRITE_ONCE(h->giver, NULL);
unlock:
	mmap_read_unlock(mm);
	return max(n, 0);
}

/* Unmaps everything of the caller outside [keep, keep_end) but what the kernel itself mapped. */
int ssi_unmap_all(u64 keep, u64 keep_end)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	unsigned long at = 0;

	for (;;) {
		unsigned long start = 0, end = 0;
		int r;

		{
			VMA_ITERATOR(vmi, mm, at);

			mmap_read_lock(mm);
			for_each_vma(vmi, vma) {
				if (special_of(vma) || (vma->vm_start >= keep && vma->vm_end <= keep_end))
					continue;
				start = vma->vm_start;
				end = vma->vm_end;
				break;
			}
			mmap_read_unlock(mm);
		}
		if (!end)
			return 0;
		r = vm_munmap(start, end - start);
		if (r)
			return r;
		at = end;
	}
}

unsigned long ssi_task_size(void)
{
	return TASK_SIZE_MAX;
}

int ssi_hugetlb_flag(u64 flags)
{
	return !!(flags & VM_HUGETLB);
}
