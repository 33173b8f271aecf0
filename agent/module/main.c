// SPDX-License-Identifier: GPL-2.0
/*
 * The jump into another kernel and back, for kernels without CONFIG_KEXEC_JUMP, as /dev/dormouse; and the memory of a
 * kernel that is stopped, for the kernel that restores it, as /dev/oldmem.
 *
 * Both are for `dormouse`, and for root alone. Only exported symbols are used.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/uaccess.h>

#include "dormouse.h"

static bool oldmem;
module_param(oldmem, bool, 0444);
MODULE_PARM_DESC(oldmem, "offer /dev/oldmem: in a kernel that was started to restore another one");

static DEFINE_MUTEX(lock);	/* the image, and whether the device is open */
static bool is_open;
static struct image image = { .pages = LIST_HEAD_INIT(image.pages) };

static int dormouse_open(struct inode *inode, struct file *file)
{
	int error = 0;

	if (!capable(CAP_SYS_BOOT) || !capable(CAP_SYS_RAWIO))
		return -EPERM;
	mutex_lock(&lock);
	if (is_open)
		error = -EBUSY;
	else
		is_open = true;
	mutex_unlock(&lock);
	return error;
}

/* What its opener has loaded does not outlive it, however it ends. */
static int dormouse_release(struct inode *inode, struct file *file)
{
	mutex_lock(&lock);
	image_unload(&image);
	is_open = false;
	mutex_unlock(&lock);
	return 0;
}

static long dormouse_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct dormouse_info info = { .abi = DORMOUSE_ABI };
	struct dormouse_jump result = { };
	struct dormouse_load load;
	long error;

	mutex_lock(&lock);
	switch (command) {
	case DORMOUSE_INFO:
		info.obstacles = jump_obstacles();
		error = copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
		break;
	case DORMOUSE_LOAD:
		error = copy_from_user(&load, user, sizeof(load)) ? -EFAULT : image_load(&image, &load);
		break;
	case DORMOUSE_JUMP:
		/* An address that cannot be written to is found before anything is frozen, not after. */
		error = copy_to_user(user, &result, sizeof(result)) ? -EFAULT : jump(&image, &result);
		if (copy_to_user(user, &result, sizeof(result)))
			error = -EFAULT;
		break;
	default:
		error = -ENOTTY;
	}
	mutex_unlock(&lock);
	return error;
}

/* No compat_ioctl: the caller's segment registers are taken to be those of a 64-bit program (processor.c). */
static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = dormouse_open,
	.release = dormouse_release,
	.unlocked_ioctl = dormouse_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "dormouse",
	.mode = 0600,
	.fops = &operations,
};

static int __init dormouse_init(void)
{
	int error = misc_register(&device);

	if (error || !oldmem)
		return error;
	error = oldmem_register();
	if (error)
		misc_deregister(&device);
	return error;
}

static void __exit dormouse_exit(void)
{
	if (oldmem)
		oldmem_unregister();
	misc_deregister(&device);
}

module_init(dormouse_init);
module_exit(dormouse_exit);

MODULE_DESCRIPTION("Hibernation through a second kernel: the jump, and the memory of a stopped kernel");
MODULE_LICENSE("GPL");
