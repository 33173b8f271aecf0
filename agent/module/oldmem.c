// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/oldmem: the memory of a stopped kernel, for the one that saves or restores it.
 *
 * The loader has put all RAM of the stopped kernel into the memory map of this one as reserved. Firmware has reserved
 * ranges of its own, so what is reserved is not enough: the opener, of whom there is one at a time, first names the
 * ranges that it means, once, each is checked, and nothing else can be reached. What this kernel uses as RAM, what a
 * driver has claimed, and the first megabyte are always refused.
 */
#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/security.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "dormouse.h"

#define MOST_RANGES	4096
/* Where addresses end that a 5-level table maps. */
#define HIGHEST		(1ULL << 52)

static atomic_t is_open = ATOMIC_INIT(0);
static DEFINE_MUTEX(lock);		/* while ranges are set; they stay until the file is closed */
static struct dormouse_range *ranges;	/* ascending */
static u64 count;

static bool is_allowed(const struct dormouse_range *range)
{
	if (!PAGE_ALIGNED(range->start) || !PAGE_ALIGNED(range->end) || range->start >= range->end)
		return false;
	if (range->start < SZ_1M || range->end > HIGHEST)
		return false;
	return length_known_as(range->start, range->end, IORESOURCE_MEM, IORES_DESC_RESERVED) ==
		       range->end - range->start &&
	       !length_known_as(range->start, range->end, IORESOURCE_BUSY, IORES_DESC_NONE);
}

static int set_ranges(const struct dormouse_ranges *wanted)
{
	struct dormouse_range *given;
	u64 i, previous = 0;

	if (ranges)
		return -EBUSY;
	if (!wanted->count || wanted->count > MOST_RANGES)
		return -EINVAL;
	given = vmemdup_user(u64_to_user_ptr(wanted->ranges), wanted->count * sizeof(*given));
	if (IS_ERR(given))
		return PTR_ERR(given);
	for (i = 0; i < wanted->count; i++) {
		if (given[i].start < previous || !is_allowed(&given[i])) {
			kvfree(given);
			return -EPERM;
		}
		previous = given[i].end;
	}
	ranges = given;
	smp_store_release(&count, wanted->count);
	return 0;
}

static long oldmem_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct dormouse_ranges wanted;
	long result;

	if (command != DORMOUSE_RANGES)
		return -ENOTTY;
	if (copy_from_user(&wanted, (void __user *)argument, sizeof(wanted)))
		return -EFAULT;
	mutex_lock(&lock);
	result = set_ranges(&wanted);
	mutex_unlock(&lock);
	return result;
}

/* How many bytes can be reached from an address on. */
static u64 reach(u64 at)
{
	u64 i, known = smp_load_acquire(&count);

	for (i = 0; i < known; i++)
		if (at >= ranges[i].start && at < ranges[i].end)
			return ranges[i].end - at;
	return 0;
}

/* At most 2 MiB at once, and no further than a range goes. */
static ssize_t transfer(char __user *user, size_t length, loff_t *position, bool write)
{
	size_t some = min3((u64)length, reach(*position), (u64)SZ_2M), left;
	void *memory;

	if (!some)
		return length ? -EPERM : 0;
	memory = memremap(*position, some, MEMREMAP_WB);
	if (!memory)
		return -ENOMEM;
	left = write ? copy_from_user(memory, user, some) : copy_to_user(user, memory, some);
	memunmap(memory);
	*position += some - left;
	return left == some ? -EFAULT : some - left;
}

static ssize_t oldmem_read(struct file *file, char __user *to, size_t length, loff_t *position)
{
	return transfer(to, length, position, false);
}

static ssize_t oldmem_write(struct file *file, const char __user *from, size_t length, loff_t *position)
{
	return transfer((char __user *)from, length, position, true);
}

/* Cached, write-back, and all at once: a fault for each page would take longer than what is done with it. */
static int oldmem_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long length = vma->vm_end - vma->vm_start;

	/* A private mapping would be copied page by page, from pages that have no struct page. */
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (reach((u64)vma->vm_pgoff << PAGE_SHIFT) < length)
		return -EPERM;
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, length, vma->vm_page_prot);
}

static int oldmem_open(struct inode *inode, struct file *file)
{
	int error = capable(CAP_SYS_RAWIO) ? security_locked_down(LOCKDOWN_DEV_MEM) : -EPERM;

	if (!error && atomic_cmpxchg(&is_open, 0, 1))
		error = -EBUSY;
	return error;
}

/* After the last mapping is gone, which keeps the file open. */
static int oldmem_release(struct inode *inode, struct file *file)
{
	kvfree(ranges);
	ranges = NULL;
	count = 0;
	atomic_set_release(&is_open, 0);
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

struct miscdevice oldmem_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "oldmem",
	.mode = 0600,
	.fops = &operations,
};
