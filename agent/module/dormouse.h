/* SPDX-License-Identifier: GPL-2.0 */
#ifndef DORMOUSE_H
#define DORMOUSE_H

/* What the control page holds behind its code (switch.S), by offset from `dormouse_control_data`. */
#define DATA_LIST	0x00	/* the list's first entry; the other kernel finds the list by it */
#define DATA_IDENTITY	0x08	/* root of the identity map */
#define DATA_BOTH	0x10	/* root of the tables that map this kernel, too */
#define DATA_ENTRY	0x18	/* where the other kernel is entered */
#define DATA_BACK	0x20	/* virtual: dormouse_back */
#define DATA_EFER	0x28
#define DATA_SIZE	0x30

#ifndef __ASSEMBLY__
#include <linux/list.h>
#include <linux/types.h>

#include "uapi.h"

/* A loaded kernel. */
struct image {
	struct dormouse_segment *segments;
	u64 count;
	struct list_head pages;		/* whatever it owns */
	u64 *control;			/* the control page */
	u64 *identity;			/* see DATA_ */
	u64 *both;
};

/* image.c */
int image_load(struct image *image, const struct dormouse_load *load);
void image_unload(struct image *image);
bool image_is_loaded(const struct image *image);

/* jump.c */
u32 jump_obstacles(void);
int jump(struct image *image, struct dormouse_jump *result);

/* processor.c: CPU 0, the only one that runs, with interrupts off */
void processor_jump(struct image *image);
void processor_restore_msrs(void);

/* switch.S */
void dormouse_switch(u64 control, u64 both);
void dormouse_restore_cr4(void);
extern const char dormouse_back[];
extern const char dormouse_control[], dormouse_control_data[], dormouse_control_end[];

/* oldmem.c */
int oldmem_register(void);
void oldmem_unregister(void);
#endif

#endif
