// SPDX-License-Identifier: GPL-2.0
/*
 * A witness of hibernation's power management events, for the tests: it counts how often drivers were told
 * that a hibernation begins and that it is over, and refuses the beginning when it is told to. It has a device, too,
 * which refuses to freeze when it is told to.
 *
 *   /sys/module/pm_witness/parameters/prepared   PM_HIBERNATION_PREPARE events, the refused ones included
 *   /sys/module/pm_witness/parameters/post       PM_POST_HIBERNATION events
 *   /sys/module/pm_witness/parameters/other      any other event: a suspend or a restore
 *   /sys/module/pm_witness/parameters/refuse     write Y to refuse the next beginnings, N to allow them
 *   /sys/module/pm_witness/parameters/awake      write Y to refuse to freeze the device, N to allow it
 *   /sys/module/pm_witness/parameters/frozen     how often it was frozen and not yet thawed or restored
 */
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/platform_device.h>
#include <linux/pm.h>
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

static bool awake;
module_param(awake, bool, 0644);
MODULE_PARM_DESC(awake, "refuse to freeze the device");

static int freezes;
module_param_named(frozen, freezes, int, 0444);
MODULE_PARM_DESC(frozen, "how often the device was frozen and not yet thawed or restored");

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

static int pm_witness_freeze(struct device *device)
{
	if (awake)
		return -EBUSY;
	freezes++;
	return 0;
}

static int pm_witness_thaw(struct device *device)
{
	freezes--;
	return 0;
}

static const struct dev_pm_ops pm_witness_operations = {
	.freeze = pm_witness_freeze,
	.thaw = pm_witness_thaw,
	.restore = pm_witness_thaw,
};

static struct platform_driver pm_witness_driver = {
	.driver = { .name = "pm_witness", .pm = &pm_witness_operations },
};

static struct platform_device *pm_witness_device;

static int __init pm_witness_init(void)
{
	int error = platform_driver_register(&pm_witness_driver);

	if (error)
		return error;
	pm_witness_device = platform_device_register_simple("pm_witness", -1, NULL, 0);
	if (IS_ERR(pm_witness_device)) {
		platform_driver_unregister(&pm_witness_driver);
		return PTR_ERR(pm_witness_device);
	}
	error = register_pm_notifier(&pm_witness_block);
	if (error) {
		platform_device_unregister(pm_witness_device);
		platform_driver_unregister(&pm_witness_driver);
	}
	return error;
}

static void __exit pm_witness_exit(void)
{
	unregister_pm_notifier(&pm_witness_block);
	platform_device_unregister(pm_witness_device);
	platform_driver_unregister(&pm_witness_driver);
}

module_init(pm_witness_init);
module_exit(pm_witness_exit);

MODULE_DESCRIPTION("Counts hibernation's power management events, for the tests of Dormouse");
MODULE_LICENSE("GPL");
