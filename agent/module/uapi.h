/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What the agent and the module say to each other. agent/sys/src/module.rs has the same; whoever changes one changes
 * the other, and DORMOUSE_ABI with them.
 */
#ifndef DORMOUSE_UAPI_H
#define DORMOUSE_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define DORMOUSE_ABI	1

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

#endif
