// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/dormouse: the jump into another kernel and back, for kernels without CONFIG_KEXEC_JUMP; and, in a kernel that
 * restores another one, /dev/oldmem (oldmem.c). For `dormouse`, and for root alone. Only exported symbols are used.
 *
 * Around the jump devices, CPUs and interrupts are brought to rest in the order in which the kernel's own jump does it
 * (kernel/kexec_core.c, kernel_kexec), and back in the reverse order. Processes have been frozen by the caller, through
 * /dev/snapshot.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/capability.h>
#include <linux/cc_platform.h>
#include <linux/cpu.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/pm.h>
#include <linux/sched/mm.h>
#include <linux/security.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>

#include "dormouse.h"

static bool oldmem;
module_param(oldmem, bool, 0444);
MODULE_PARM_DESC(oldmem, "offer /dev/oldmem: in a kernel that was started to restore another one");

static atomic_t is_open = ATOMIC_INIT(0);
static DEFINE_MUTEX(lock);	/* the image, between threads of the opener */
static struct image image = { .pages = LIST_HEAD_INIT(image.pages) };

static u32 obstacles(void)
{
	u32 found = 0;

	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		found |= DORMOUSE_ENCRYPTED;
	if (boot_cpu_has(X86_FEATURE_XENPV))
		found |= DORMOUSE_PARAVIRTUAL;
	if (security_locked_down(LOCKDOWN_KEXEC) || security_locked_down(LOCKDOWN_HIBERNATION))
		found |= DORMOUSE_LOCKDOWN;
	if (!cpu_online(0))
		found |= DORMOUSE_NO_BOOT_CPU;
	return found;
}

/* Takes down every CPU but the boot CPU. Those that are down, also when one refuses, are in `down`. */
static int cpus_down(struct cpumask *down)
{
	int cpu;

	for_each_online_cpu(cpu) {
		int error = cpu ? remove_cpu(cpu) : 0;

		if (error) {
			pr_err("CPU %d cannot be taken down: error %d\n", cpu, error);
			return error;
		}
		if (cpu)
			cpumask_set_cpu(cpu, down);
	}
	return 0;
}

/* Brings the CPUs in `down` back, and returns how many have not come. */
static u32 cpus_up(const struct cpumask *down)
{
	u32 lost = 0;
	int cpu;

	for_each_cpu(cpu, down) {
		int error = add_cpu(cpu);

		if (error) {
			pr_err("CPU %d has not come back: error %d\n", cpu, error);
			lost++;
		}
	}
	return lost;
}

/* With one CPU left and devices at rest. */
static int jump_alone(struct dormouse_jump *result)
{
	int error;

	local_irq_disable();
	/* As in the kernel's own hibernation: ACPI sets interrupt links by functions that would sleep otherwise. */
	system_state = SYSTEM_SUSPEND;
	error = syscore_suspend();
	if (!error) {
		processor_jump(&image);
		result->jumped = 1;
		syscore_resume();
		/* Once more: microcode, which has just been loaded, makes some of them. */
		processor_restore_msrs();
	}
	system_state = SYSTEM_RUNNING;
	local_irq_enable();
	return error;
}

static int jump_at_rest(struct dormouse_jump *result, struct cpumask *down)
{
	int error;

	error = dpm_suspend_start(PMSG_FREEZE);
	if (!error)
		error = dpm_suspend_end(PMSG_FREEZE);
	if (error)
		goto resume;
	error = cpus_down(down);
	if (!error)
		error = jump_alone(result);
	result->lost_cpus = cpus_up(down);
	/* Another kernel has used the devices, or the power was off: drivers must take nothing for granted. */
	dpm_resume_start(result->jumped ? PMSG_RESTORE : PMSG_RECOVER);
resume:
	dpm_resume_end(result->jumped ? PMSG_RESTORE : PMSG_RECOVER);
	return error;
}

/*
 * Jumps into the loaded kernel, and returns when this one goes on. An error means that nothing has run and that
 * everything is as it was, except for CPUs that could not be brought back.
 */
static int jump(struct dormouse_jump *result)
{
	unsigned int noio, sleep;
	cpumask_var_t down;
	int error;

	/* A kernel that has come back for good cannot be entered again. */
	if (!image.count || !image.control[DATA_ENTRY / sizeof(u64)])
		return -ENOEXEC;
	if (obstacles())	/* which may be others than when it was loaded */
		return -EOPNOTSUPP;
	/* Set for the one task that has frozen all others: then notifiers have been called, and hibernation is locked. */
	if (!(current->flags & PF_SUSPEND_TASK))
		return -EPERM;
	if (!zalloc_cpumask_var(&down, GFP_KERNEL))
		return -ENOMEM;
	sleep = lock_system_sleep();
	/* PM_HIBERNATION_PREPARE has forbidden what remove_cpu() does, because the kernel's own way needs no permission. */
	cpu_hotplug_enable();
	/* Memory must not be made free by writing to a disk that is at rest. */
	noio = memalloc_noio_save();
	error = jump_at_rest(result, down);
	memalloc_noio_restore(noio);
	cpu_hotplug_disable();
	unlock_system_sleep(sleep);
	free_cpumask_var(down);
	return error;
}

static long dormouse_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct dormouse_info info = { .abi = DORMOUSE_ABI, .obstacles = obstacles() };
	struct dormouse_jump result = { };
	struct dormouse_load load;
	long error = -ENOTTY;

	mutex_lock(&lock);
	if (command == DORMOUSE_INFO) {
		error = copy_to_user(user, &info, sizeof(info)) ? -EFAULT : 0;
	} else if (command == DORMOUSE_LOAD) {
		if (info.obstacles)
			error = info.obstacles & DORMOUSE_LOCKDOWN ? -EPERM : -EOPNOTSUPP;
		else
			error = copy_from_user(&load, user, sizeof(load)) ? -EFAULT : image_load(&image, &load);
	} else if (command == DORMOUSE_JUMP) {
		/* An address that cannot be written to is found before anything is frozen, not after. */
		error = copy_to_user(user, &result, sizeof(result)) ? -EFAULT : jump(&result);
		if (copy_to_user(user, &result, sizeof(result)))
			error = -EFAULT;
	}
	mutex_unlock(&lock);
	return error;
}

static int dormouse_open(struct inode *inode, struct file *file)
{
	int error = capable(CAP_SYS_BOOT) && capable(CAP_SYS_RAWIO) ? 0 : -EPERM;

	if (!error && atomic_cmpxchg(&is_open, 0, 1))
		error = -EBUSY;
	return error;
}

/* What its opener has loaded does not outlive it, however it ends. */
static int dormouse_release(struct inode *inode, struct file *file)
{
	image_unload(&image);
	atomic_set_release(&is_open, 0);
	return 0;
}

/* No compat_ioctl: the caller's segment registers are taken to be those of a 64-bit program (switch.S). */
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
	error = misc_register(&oldmem_device);
	if (error)
		misc_deregister(&device);
	return error;
}

static void __exit dormouse_exit(void)
{
	if (oldmem)
		misc_deregister(&oldmem_device);
	misc_deregister(&device);
}

module_init(dormouse_init);
module_exit(dormouse_exit);

MODULE_DESCRIPTION("Hibernation through a second kernel: the jump, and the memory of a stopped kernel");
MODULE_LICENSE("GPL");
