// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/oldmem: the memory of a stopped kernel, for the one that saves or restores it.
 *
 * The loader has put all RAM of the stopped kernel into the memory map of this one as reserved. Firmware has reserved
 * ranges of its own, so what is reserved is not enough: an opener first names the ranges that it means, once, each is
 * checked, and nothing else can be reached through this open file. What this kernel uses as RAM, what a driver has
 * claimed, and the first megabyte are always refused.
 *
 * The ranges stay mapped while the file is open. That is what read and write use; it also settles with the kernel that
 * all of it is cached, write-back, so that mappings of user space can be made of large pages without asking for each.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/security.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
#include <linux/pfn_t.h>
#endif

#include "dormouse.h"

#define MOST_RANGES	4096
#define LOWEST		SZ_1M
/* Ends where addresses do that a 5-level table maps. */
#define HIGHEST		(1ULL << 52)

/* Part of a range, mapped for this kernel. */
struct piece {
	u64 start, end;
	void *mapped;
};

struct opened {
	struct mutex lock;
	struct piece *pieces;	/* ascending */
	u64 count;
};

static int add_length(struct resource *resource, void *sum)
{
	*(u64 *)sum += resource_size(resource);
	return 0;
}

/* How much of a range the kernel knows by these flags and this description. */
static u64 length_known_as(const struct dormouse_range *range, unsigned long flags, unsigned long description)
{
	u64 length = 0;

	walk_iomem_res_desc(description, flags, range->start, range->end - 1, &length, add_length);
	return length;
}

static bool is_allowed(const struct dormouse_range *range)
{
	if (!PAGE_ALIGNED(range->start) || !PAGE_ALIGNED(range->end))
		return false;
	if (range->start < LOWEST || range->start >= range->end || range->end > HIGHEST)
		return false;
	return length_known_as(range, IORESOURCE_MEM, IORES_DESC_RESERVED) == range->end - range->start &&
	       !length_known_as(range, IORESOURCE_BUSY, IORES_DESC_NONE);
}

static void forget(struct opened *opened)
{
	while (opened->count)
		memunmap(opened->pieces[--opened->count].mapped);
	kvfree(opened->pieces);
	opened->pieces = NULL;
}

/* Maps a range in up to three pieces, so that large pages hold what lies between the first and the last 2 MiB boundary. */
static int map_range(struct opened *opened, const struct dormouse_range *range)
{
	u64 start, end, last = ALIGN_DOWN(range->end, SZ_2M);

	for (start = range->start; start < range->end; start = end) {
		struct piece *piece = &opened->pieces[opened->count];

		if (!IS_ALIGNED(start, SZ_2M))
			end = min(ALIGN(start, SZ_2M), range->end);
		else
			end = start < last ? last : range->end;
		piece->mapped = memremap(start, end - start, MEMREMAP_WB);
		if (!piece->mapped)
			return -ENOMEM;
		piece->start = start;
		piece->end = end;
		opened->count++;
	}
	return 0;
}

static int set_ranges(struct opened *opened, const struct dormouse_ranges *wanted)
{
	struct dormouse_range *ranges;
	u64 i, previous = 0;
	int error = 0;

	if (opened->pieces)
		return -EBUSY;
	if (!wanted->count || wanted->count > MOST_RANGES)
		return -EINVAL;
	ranges = vmemdup_user(u64_to_user_ptr(wanted->ranges), wanted->count * sizeof(*ranges));
	if (IS_ERR(ranges))
		return PTR_ERR(ranges);
	opened->pieces = kvmalloc_array(wanted->count * 3, sizeof(*opened->pieces), GFP_KERNEL);
	if (!opened->pieces)
		error = -ENOMEM;
	for (i = 0; !error && i < wanted->count; i++) {
		if (ranges[i].start < previous || !is_allowed(&ranges[i]))
			error = -EPERM;
		else
			error = map_range(opened, &ranges[i]);
		previous = ranges[i].end;
	}
	kvfree(ranges);
	if (error)
		forget(opened);
	return error;
}

static long oldmem_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct opened *opened = file->private_data;
	struct dormouse_ranges wanted;
	long result;

	if (command != DORMOUSE_RANGES)
		return -ENOTTY;
	if (copy_from_user(&wanted, (void __user *)argument, sizeof(wanted)))
		return -EFAULT;
	mutex_lock(&opened->lock);
	result = set_ranges(opened, &wanted);
	mutex_unlock(&opened->lock);
	return result;
}

/* The memory at `at`. What of `*count` does not lie together there is taken off it. */
static void *find(const struct opened *opened, u64 at, u64 *count)
{
	u64 i;

	for (i = 0; i < opened->count; i++) {
		const struct piece *piece = &opened->pieces[i];

		if (at >= piece->start && at < piece->end) {
			*count = min(*count, piece->end - at);
			return piece->mapped + (at - piece->start);
		}
	}
	return NULL;
}

static ssize_t transfer(struct file *file, char __user *user, size_t count, loff_t *position, bool write)
{
	struct opened *opened = file->private_data;
	ssize_t done = 0;

	mutex_lock(&opened->lock);
	while (count) {
		u64 some = min_t(u64, count, SZ_2M);
		void *memory = find(opened, *position, &some);
		unsigned long left;

		if (!memory) {
			done = done ? done : -EPERM;
			break;
		}
		left = write ? copy_from_user(memory, user, some) : copy_to_user(user, memory, some);
		some -= left;
		done += some;
		user += some;
		*position += some;
		count -= some;
		if (left) {
			done = done ? done : -EFAULT;
			break;
		}
		cond_resched();
	}
	mutex_unlock(&opened->lock);
	return done;
}

static ssize_t oldmem_read(struct file *file, char __user *to, size_t count, loff_t *position)
{
	return transfer(file, to, count, position, false);
}

static ssize_t oldmem_write(struct file *file, const char __user *from, size_t count, loff_t *position)
{
	return transfer(file, (char __user *)from, count, position, true);
}

/*
 * Large pages from the kernel on that makes them for special mappings (vmf_insert_pfn_pmd is exported there) and lets
 * nobody take them for memory that has a struct page (pmd_special, Linux 6.12).
 */
#if defined(CONFIG_TRANSPARENT_HUGEPAGE) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#define HAS_LARGE_PAGES

static u64 address_of(struct vm_fault *vmf, unsigned long virtual)
{
	struct vm_area_struct *vma = vmf->vma;

	return ((u64)vma->vm_pgoff << PAGE_SHIFT) + (virtual - vma->vm_start);
}

static vm_fault_t oldmem_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	unsigned long virtual = ALIGN_DOWN(vmf->address, PMD_SIZE);
	struct vm_area_struct *vma = vmf->vma;
	u64 pfn;

	if (order != PMD_ORDER || virtual < vma->vm_start || virtual + PMD_SIZE > vma->vm_end)
		return VM_FAULT_FALLBACK;
	pfn = address_of(vmf, virtual) >> PAGE_SHIFT;
	if (!IS_ALIGNED(pfn, PMD_SIZE >> PAGE_SHIFT))
		return VM_FAULT_FALLBACK;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 17, 0)
	return vmf_insert_pfn_pmd(vmf, __pfn_to_pfn_t(pfn, PFN_DEV), true);
#else
	return vmf_insert_pfn_pmd(vmf, pfn, true);
#endif
}

/* All that one table of entries holds at once: whoever touches one page touches its neighbours. */
static vm_fault_t oldmem_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long virtual = max(ALIGN_DOWN(vmf->address, PMD_SIZE), vma->vm_start);
	unsigned long end = min(ALIGN_DOWN(vmf->address, PMD_SIZE) + PMD_SIZE, vma->vm_end);
	vm_fault_t result = VM_FAULT_NOPAGE;

	for (; virtual < end && result == VM_FAULT_NOPAGE; virtual += PAGE_SIZE)
		result = vmf_insert_pfn(vma, virtual, address_of(vmf, virtual) >> PAGE_SHIFT);
	return result;
}

static const struct vm_operations_struct mapping_operations = {
	.fault = oldmem_fault,
	.huge_fault = oldmem_huge_fault,
};
#endif

static int oldmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct opened *opened = file->private_data;
	u64 at = (u64)vma->vm_pgoff << PAGE_SHIFT, left = vma->vm_end - vma->vm_start, some;
	bool is_inside = true;

	/* A private mapping would be copied page by page, from pages that have no struct page. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	mutex_lock(&opened->lock);
	for (; left && is_inside; at += some, left -= some) {
		some = left;
		is_inside = find(opened, at, &some);
	}
	mutex_unlock(&opened->lock);
	if (!is_inside)
		return -EPERM;
#ifdef HAS_LARGE_PAGES
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &mapping_operations;
	return 0;
#else
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, vma->vm_end - vma->vm_start, vma->vm_page_prot);
#endif
}

static int oldmem_open(struct inode *inode, struct file *file)
{
	struct opened *opened;
	int error;

	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	error = security_locked_down(LOCKDOWN_DEV_MEM);
	if (error)
		return error;
	opened = kzalloc(sizeof(*opened), GFP_KERNEL);
	if (!opened)
		return -ENOMEM;
	mutex_init(&opened->lock);
	file->private_data = opened;
	return 0;
}

/* After the last mapping is gone, which keeps the file open. */
static int oldmem_release(struct inode *inode, struct file *file)
{
	struct opened *opened = file->private_data;

	forget(opened);
	kfree(opened);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = oldmem_open,
	.release = oldmem_release,
	.read = oldmem_read,
	.write = oldmem_write,
	.mmap = oldmem_mmap,
	.unlocked_ioctl = oldmem_ioctl,
	.llseek = default_llseek,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "oldmem",
	.mode = 0600,
	.fops = &operations,
};

int oldmem_register(void)
{
	return misc_register(&device);
}

void oldmem_unregister(void)
{
	misc_deregister(&device);
}
