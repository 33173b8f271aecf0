// SPDX-License-Identifier: GPL-2.0
/*
 * The way to the jump and back: devices, CPUs and interrupts brought to rest in the order in which the kernel's own jump
 * does it (kernel/kexec_core.c, kernel_kexec), and back in the reverse order. Processes have been frozen by the caller,
 * through /dev/snapshot.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cc_platform.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/pm.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/security.h>
#include <linux/suspend.h>
#include <linux/syscore_ops.h>
#include <asm/cpufeature.h>

#include "dormouse.h"

u32 jump_obstacles(void)
{
	u32 obstacles = 0;

	if (cc_platform_has(CC_ATTR_MEM_ENCRYPT))
		obstacles |= DORMOUSE_ENCRYPTED;
	if (boot_cpu_has(X86_FEATURE_XENPV))
		obstacles |= DORMOUSE_PARAVIRTUAL;
	if (security_locked_down(LOCKDOWN_KEXEC) || security_locked_down(LOCKDOWN_HIBERNATION))
		obstacles |= DORMOUSE_LOCKDOWN;
	if (!cpu_online(0))
		obstacles |= DORMOUSE_NO_BOOT_CPU;
	return obstacles;
}

/* Brings back the CPUs in `down`, and returns how many have not come. */
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

/* Takes down every CPU but the boot CPU. Those that are down, also when one refuses, are in `down`. */
static int cpus_down(struct cpumask *down)
{
	int cpu, error;

	for_each_online_cpu(cpu) {
		if (!cpu)
			continue;
		error = remove_cpu(cpu);
		if (error) {
			pr_err("CPU %d cannot be taken down: error %d\n", cpu, error);
			return error;
		}
		cpumask_set_cpu(cpu, down);
	}
	return 0;
}

/* With one CPU left and devices at rest. */
static int jump_alone(struct image *image, struct dormouse_jump *result)
{
	int error;

	local_irq_disable();
	error = syscore_suspend();
	if (!error) {
		processor_jump(image);
		result->jumped = 1;
		syscore_resume();
		/* Once more: microcode, which has just been loaded, makes some of them. */
		processor_restore_msrs();
	}
	local_irq_enable();
	return error;
}

static int jump_at_rest(struct image *image, struct dormouse_jump *result, struct cpumask *down)
{
	int error;

	error = dpm_suspend_start(PMSG_FREEZE);
	if (!error)
		error = dpm_suspend_end(PMSG_FREEZE);
	if (error)
		goto resume;
	error = cpus_down(down);
	if (!error)
		error = jump_alone(image, result);
	result->lost_cpus = cpus_up(down);
	/* Another kernel has used the devices, or the power was off: drivers must take nothing for granted. */
	dpm_resume_start(result->jumped ? PMSG_RESTORE : PMSG_RECOVER);
resume:
	dpm_resume_end(result->jumped ? PMSG_RESTORE : PMSG_RECOVER);
	return error;
}

/*
 * Jumps into the loaded kernel, and returns when this one goes on. An error means that nothing has run and that everything
 * is as it was, except for CPUs that could not be brought back.
 */
int jump(struct image *image, struct dormouse_jump *result)
{
	unsigned int noio, sleep;
	cpumask_var_t down;
	int error;

	if (!image_is_loaded(image))
		return -ENOEXEC;
	/* What could have changed since it was loaded. */
	if (jump_obstacles())
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
	error = jump_at_rest(image, result, down);
	memalloc_noio_restore(noio);
	cpu_hotplug_disable();
	unlock_system_sleep(sleep);
	free_cpumask_var(down);
	return error;
}
