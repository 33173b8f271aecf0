/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DORMOUSE_H
#define DORMOUSE_H

/* What the control page holds after its code (switch.S), by offset from `dormouse_control_data`. */
#define DATA_LIST	0x00	/* the list's first entry; the other kernel finds the list by it */
#define DATA_IDENTITY	0x08	/* root of the identity map */
#define DATA_BOTH	0x10	/* root of the tables that map this kernel, too */
#define DATA_ENTRY	0x18	/* where the other kernel is entered; 0: it has come back for good */
#define DATA_BACK	0x20	/* virtual: dormouse_back */
#define DATA_EFER	0x28
#define DATA_SIZE	0x30

#ifndef __ASSEMBLY__
#include <linux/ioctl.h>
#include <linux/ioport.h>
#include <linux/types.h>

/*
 * What the agent and the module exchange. agent/sys/src/module.rs has the same; whoever changes one changes the other,
 * and DORMOUSE_ABI with them.
 */
#define DORMOUSE_ABI	2

/* Why this kernel cannot be jumped from. */
#define DORMOUSE_ENCRYPTED	(1U << 0)	/* SME, SEV or TDX: pages would change hands without their key */
#define DORMOUSE_PARAVIRTUAL	(1U << 1)	/* Xen PV: descriptor and page tables belong to the hypervisor */
#define DORMOUSE_LOCKDOWN	(1U << 2)	/* lockdown forbids kexec or hibernation */
#define DORMOUSE_NO_BOOT_CPU	(1U << 3)	/* CPU 0 is offline: the one that comes back would be another */

struct dormouse_info {
	__u32 abi;
	__u32 obstacles;
};

/* A range of physical memory that the jump exchanges. As in kexec_load(2), but of fixed size. */
struct dormouse_segment {
	__u64 data;		/* what is put there: a user address */
	__u64 data_size;	/* bytes; the rest of the range is zero */
	__u64 start;		/* physical, page aligned; segments ascend */
	__u64 size;		/* bytes, whole pages */
};

struct dormouse_load {
	__u64 entry;		/* physical; inside a segment */
	__u64 segments;		/* the user address of an array */
	__u64 count;
};

struct dormouse_jump {
	__u32 jumped;		/* whether another kernel has run */
	__u32 lost_cpus;	/* how many CPUs have not come back */
};

struct dormouse_range {
	__u64 start;		/* physical, page aligned */
	__u64 end;
};

struct dormouse_ranges {
	__u64 ranges;		/* the user address of an array, ascending */
	__u64 count;
};

/* /dev/dormouse */
#define DORMOUSE_INFO		_IOR(0xd0, 0, struct dormouse_info)
#define DORMOUSE_LOAD		_IOW(0xd0, 1, struct dormouse_load)
#define DORMOUSE_JUMP		_IOR(0xd0, 2, struct dormouse_jump)
/* /dev/oldmem: once for each open file, before anything can be reached through it */
#define DORMOUSE_RANGES		_IOW(0xd0, 16, struct dormouse_ranges)

/* A loaded kernel. */
struct image {
	struct dormouse_segment *segments;
	u64 count;			/* none: nothing is loaded */
	struct list_head pages;		/* whatever it owns */
	u64 *control;			/* the control page's data */
	u64 *identity, *both;		/* see DATA_ */
};

/* image.c */
int image_load(struct image *image, const struct dormouse_load *load);
void image_unload(struct image *image);
u64 length_known_as(u64 start, u64 end, unsigned long flags, unsigned long description);

/* processor.c: on CPU 0, the only one that runs, with interrupts off */
void processor_jump(struct image *image);
void processor_restore_msrs(void);

/* switch.S */
void dormouse_switch(u64 control, u64 both);
extern unsigned long saved_cr4;
extern const char dormouse_back[], dormouse_control[], dormouse_control_data[], dormouse_control_end[];

/* oldmem.c */
extern struct miscdevice oldmem_device;
#endif
#endif
