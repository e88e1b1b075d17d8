/* SPDX-License-Identifier: GPL-2.0-only */
/* What sys/mm.rs calls. */
#ifndef SSI_MM_H
#define SSI_MM_H

#include <linux/fs.h>
#include <linux/mm_types.h>
#include "task.h"

extern struct vfsmount *ssi_mnt;

static int ssi_fs_init_context(struct fs_context *fc);
static char *ssi_dname(struct dentry *d, char *buf, int len);
long ssi_area_map(u64 at, u64 slots_bytes);
long ssi_unmap(u64 start, u64 len);
int ssi_mm_init(void);
void ssi_mm_exit(void);
int ssi_vmas(struct mm_struct *mm, struct ssi_vma *v, int max, char *paths, u32 paths_len);
int ssi_exe_path(struct mm_struct *mm, char *buf, int len, u32 *major, u32 *minor, u64 *ino);
int ssi_page_read(struct mm_struct *mm, u64 addr, void *to, int file_is_known, int nowait);
struct page *ssi_page_new(struct page *old, const void *from);
void ssi_page_get(struct page *page);
void ssi_page_put(struct page *page);
int ssi_page_is_zero(const void *p);
int ssi_mm_unstable(struct mm_struct *mm);
long ssi_map(struct file *file, u64 at, u64 len, u32 prot, u32 shared, u32 growsdown, u32 noreserve, u64 offset);
struct file *ssi_open(const char *path, int flags);
void ssi_file_put(struct file *f);
int ssi_write_forced(u64 to, const void *from, u32 len);
void ssi_brk_set(u64 start_brk, u64 brk);
int ssi_hook(u64 start, u64 end, void *pager);
int ssi_unhook(struct mm_struct *mm, void *pager);
int ssi_install(struct mm_struct *mm, u64 addr, int count, void *pager);
int ssi_give(struct mm_struct *mm, u64 addr, const void *data, int count, void *pager);
int ssi_unmap_all(u64 keep, u64 keep_end);
unsigned long ssi_task_size(void);
int ssi_hugetlb_flag(u64 flags);

#endif
