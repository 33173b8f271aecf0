// SPDX-License-Identifier: GPL-2.0
/*
 * A witness of hibernation's power management events, for the tests: it counts how often drivers were told
 * that a hibernation begins and that it is over, and refuses the beginning when it is told to.
 *
 *   /sys/module/pm_witness/parameters/prepared   PM_HIBERNATION_PREPARE events, the refused ones included
 *   /sys/module/pm_witness/parameters/post       PM_POST_HIBERNATION events
 *   /sys/module/pm_witness/parameters/other      any other event: a suspend or a restore
 *   /sys/module/pm_witness/parameters/refuse     write Y to refuse the next beginnings, N to allow them
 */
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/suspend.h>

static unsigned int prepared;
module_param(prepared, uint, 0444);
MODULE_PARM_DESC(prepared, "PM_HIBERNATION_PREPARE events seen");

static unsigned int post;
module_param(post, uint, 0444);
MODULE_PARM_DESC(post, "PM_POST_HIBERNATION events seen");

static unsigned int other;
module_param(other, uint, 0444);
MODULE_PARM_DESC(other, "other power management events seen");

static bool refuse;
module_param(refuse, bool, 0644);
MODULE_PARM_DESC(refuse, "refuse PM_HIBERNATION_PREPARE");

static int pm_witness_event(struct notifier_block *block, unsigned long event, void *unused)
{
	switch (event) {
	case PM_HIBERNATION_PREPARE:
		prepared++;
		return refuse ? NOTIFY_BAD : NOTIFY_OK;
	case PM_POST_HIBERNATION:
		post++;
		return NOTIFY_OK;
	default:
		other++;
		return NOTIFY_OK;
	}
}

static struct notifier_block pm_witness_block = {
	.notifier_call = pm_witness_event,
};

static int __init pm_witness_init(void)
{
	return register_pm_notifier(&pm_witness_block);
}

static void __exit pm_witness_exit(void)
{
	unregister_pm_notifier(&pm_witness_block);
}

module_init(pm_witness_init);
module_exit(pm_witness_exit);

MODULE_DESCRIPTION("Counts hibernation's power management events, for the tests of Dormouse");
MODULE_LICENSE("GPL");
