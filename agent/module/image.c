// SPDX-License-Identifier: GPL-2.0
/*
 * Loading a kernel: checks what user space wants, and makes what the jump works from, a list of pages to exchange, page
 * tables and the control page.
 *
 * The list has the form of kexec's (include/linux/kexec.h): words with a page's address and, in the low bits, what it is.
 * A destination is followed by the sources for it and the pages behind it, one each. The other kernel follows the list to
 * find where this kernel's pages are while they are exchanged, so the form is part of the interface.
 *
 * No page that the jump works from may lie in a destination. A page that the allocator gives out from there is no loss:
 * it is in use by nobody but this image, so it becomes its own source, and the exchange leaves it alone. So loading takes
 * one page for each page of a destination, never more, however much of the destinations is free.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/cpufeature.h>
#include <asm/io.h>
#include <asm/special_insns.h>

#include "dormouse.h"

#define DESTINATION	1
#define INDIRECTION	2
#define DONE		4
#define SOURCE		8

/* A machine has a region in a few pieces and low memory in a few more. */
#define MOST_SEGMENTS	256

#define WORDS		(PAGE_SIZE / sizeof(u64))

/* An entry of a page table: present, writable, accessed, dirty; and one that maps a large page. */
#define TABLE		0x063ULL
#define LARGE		0x0e3ULL
#define ADDRESS		0x000ffffffffff000ULL
#define SHIFT_2M	21
#define SHIFT_1G	30

struct builder {
	struct image *image;
	struct list_head spares;	/* sources that no destination has yet */
	u64 spare_count;
	u64 total;			/* pages in all destinations */
	unsigned long *own;		/* those that are their own source, a bit for each page of a destination */
	u64 own_count;
	u64 *next, *last;		/* in the list: the next word, and the page's last one */
};

/* The number of the destination's page at a physical address, counted over all segments. */
static bool find_destination(const struct image *image, u64 address, u64 *number)
{
	u64 i, before = 0;

	for (i = 0; i < image->count; i++) {
		const struct dormouse_segment *segment = &image->segments[i];

		if (address >= segment->start && address - segment->start < segment->size) {
			*number = before + ((address - segment->start) >> PAGE_SHIFT);
			return true;
		}
		before += segment->size >> PAGE_SHIFT;
	}
	return false;
}

/* A zeroed page outside of every destination. The image owns it, and whatever else was given out on the way to it. */
static struct page *take_page(struct builder *builder)
{
	for (;;) {
		struct page *page;
		u64 number;

		/* Neither the OOM killer nor a warning: a hibernation that does not fit is refused by its caller. */
		page = alloc_page(GFP_KERNEL | __GFP_ZERO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
		if (!page)
			return NULL;
		list_add(&page->lru, &builder->image->pages);
		if (!find_destination(builder->image, page_to_phys(page), &number))
			return page;
		__set_bit(number, builder->own);
		builder->own_count++;
	}
}

static u64 *take_words(struct builder *builder)
{
	struct page *page = take_page(builder);

	return page ? page_address(page) : NULL;
}

static int add_length(struct resource *resource, void *sum)
{
	*(u64 *)sum += resource_size(resource);
	return 0;
}

static bool is_ram(u64 start, u64 size)
{
	u64 found = 0;

	walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, start, start + size - 1, &found,
			    add_length);
	return found == size;
}

static int read_segments(struct builder *builder, const struct dormouse_load *load)
{
	struct image *image = builder->image;
	u64 i, end, previous = 0;
	bool has_entry = false;

	if (!load->count || load->count > MOST_SEGMENTS)
		return -EINVAL;
	image->segments = kvmalloc_array(load->count, sizeof(*image->segments), GFP_KERNEL);
	if (!image->segments)
		return -ENOMEM;
	if (copy_from_user(image->segments, u64_to_user_ptr(load->segments), load->count * sizeof(*image->segments)))
		return -EFAULT;
	for (i = 0; i < load->count; i++) {
		const struct dormouse_segment *segment = &image->segments[i];

		if (!PAGE_ALIGNED(segment->start) || !PAGE_ALIGNED(segment->size) || !segment->size)
			return -EADDRNOTAVAIL;
		if (check_add_overflow(segment->start, segment->size, &end))
			return -EADDRNOTAVAIL;
		if (segment->start < previous || segment->data_size > segment->size)
			return -EINVAL;
		if (!is_ram(segment->start, segment->size))
			return -EADDRNOTAVAIL;
		has_entry |= load->entry >= segment->start && load->entry < end;
		previous = end;
		builder->total += segment->size >> PAGE_SHIFT;
	}
	if (!has_entry)
		return -EINVAL;
	builder->own = kvcalloc(BITS_TO_LONGS(builder->total), sizeof(long), GFP_KERNEL);
	if (!builder->own)
		return -ENOMEM;
	image->count = load->count;
	return 0;
}

struct mapping {
	struct builder *builder;
	int top;		/* what the root's index is shifted by */
	bool has_1g;
};

/* Maps the 2 MiB or 1 GiB around `address` at their own address. */
static int map_page(struct mapping *mapping, u64 address, int shift)
{
	u64 *table = mapping->builder->image->identity;
	int at;

	for (at = mapping->top; at > shift; at -= 9) {
		u64 *entry = &table[(address >> at) % WORDS];

		if ((*entry & LARGE) == LARGE)
			return 0;	/* a larger page has it already */
		if (!*entry) {
			u64 *below = take_words(mapping->builder);

			if (!below)
				return -ENOMEM;
			*entry = __pa(below) | TABLE;
		}
		table = __va(*entry & ADDRESS);
	}
	if (!table[(address >> shift) % WORDS])
		table[(address >> shift) % WORDS] = (address >> shift << shift) | LARGE;
	return 0;
}

static int map_resource(struct resource *resource, void *argument)
{
	struct mapping *mapping = argument;
	u64 address = ALIGN_DOWN(resource->start, 1ULL << SHIFT_2M);

	while (address <= resource->end) {
		/* A gigabyte is mapped as one where all of it is memory: what else it holds is not touched, ever. */
		bool large = mapping->has_1g && IS_ALIGNED(address, 1ULL << SHIFT_1G) &&
			     address >= resource->start && resource->end - address >= (1ULL << SHIFT_1G) - 1;
		int error = map_page(mapping, address, large ? SHIFT_1G : SHIFT_2M);

		if (error)
			return error;
		address += 1ULL << (large ? SHIFT_1G : SHIFT_2M);
	}
	return 0;
}

/*
 * Memory at its own address, as a kernel that is started by kexec finds it: RAM, and what it reads of the firmware's
 * before it has tables of its own (arch/x86/kernel/machine_kexec_64.c, init_pgtable).
 */
static int map_memory(struct builder *builder)
{
	struct mapping mapping = {
		.builder = builder,
		.top = __read_cr4() & X86_CR4_LA57 ? 48 : 39,
		.has_1g = boot_cpu_has(X86_FEATURE_GBPAGES),
	};
	int error;

	/* A walk that finds nothing returns an error of its own. */
	error = walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, 0, -1, &mapping,
				    map_resource);
	if (error)
		return error;
	error = walk_iomem_res_desc(IORES_DESC_ACPI_TABLES, IORESOURCE_MEM, 0, -1, &mapping, map_resource);
	if (error && error != -EINVAL)
		return error;
	error = walk_iomem_res_desc(IORES_DESC_ACPI_NV_STORAGE, IORESOURCE_MEM, 0, -1, &mapping, map_resource);
	return error == -EINVAL ? 0 : error;
}

/* Appends a word to the list. The last word of each page leads to the next page. */
static int append(struct builder *builder, u64 word)
{
	if (builder->next == builder->last) {
		u64 *words = take_words(builder);

		if (!words)
			return -ENOMEM;
		if (builder->next)
			*builder->next = __pa(words) | INDIRECTION;
		else
			builder->image->control[DATA_LIST / sizeof(u64)] = __pa(words) | INDIRECTION;
		builder->next = words;
		builder->last = words + WORDS - 1;
	}
	*builder->next++ = word;
	return 0;
}

/* The page that `address`, the destination's page of this number, is exchanged with. */
static struct page *source_of(struct builder *builder, u64 address, u64 number)
{
	struct page *page;

	if (test_bit(number, builder->own))
		return pfn_to_page(address >> PAGE_SHIFT);
	page = list_first_entry(&builder->spares, struct page, lru);
	list_move(&page->lru, &builder->image->pages);
	return page;
}

static int load_segment(struct builder *builder, const struct dormouse_segment *segment, u64 number)
{
	u64 at;
	int error = append(builder, segment->start | DESTINATION);

	for (at = 0; !error && at < segment->size; at += PAGE_SIZE, number++) {
		struct page *page = source_of(builder, segment->start + at, number);

		if (at < segment->data_size &&
		    copy_from_user(page_address(page), u64_to_user_ptr(segment->data + at),
				   min_t(u64, segment->data_size - at, PAGE_SIZE)))
			return -EFAULT;
		error = append(builder, page_to_phys(page) | SOURCE);
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return error;
}

static int build(struct builder *builder, const struct dormouse_load *load)
{
	struct image *image = builder->image;
	u64 *code, i, number = 0;
	int error;

	error = read_segments(builder, load);
	if (error)
		return error;
	code = take_words(builder);
	image->identity = take_words(builder);
	image->both = take_words(builder);
	if (!code || !image->identity || !image->both)
		return -ENOMEM;
	memcpy(code, dormouse_control, dormouse_control_end - dormouse_control);
	image->control = code + (dormouse_control_data - dormouse_control) / sizeof(u64);
	error = map_memory(builder);
	if (error)
		return error;
	while (builder->spare_count < builder->total - builder->own_count) {
		struct page *page = take_page(builder);

		if (!page)
			return -ENOMEM;
		if (fatal_signal_pending(current))
			return -EINTR;
		list_move(&page->lru, &builder->spares);
		builder->spare_count++;
		cond_resched();
	}
	for (i = 0; i < image->count; i++) {
		error = load_segment(builder, &image->segments[i], number);
		if (error)
			return error;
		number += image->segments[i].size >> PAGE_SHIFT;
	}
	error = append(builder, DONE);
	if (error)
		return error;
	image->control[DATA_IDENTITY / sizeof(u64)] = __pa(image->identity);
	image->control[DATA_BOTH / sizeof(u64)] = __pa(image->both);
	image->control[DATA_ENTRY / sizeof(u64)] = load->entry;
	image->control[DATA_BACK / sizeof(u64)] = (u64)dormouse_back;
	return 0;
}

/* Loads a kernel in place of the one that is loaded. Where that fails, none is loaded. */
int image_load(struct image *image, const struct dormouse_load *load)
{
	struct builder builder = { .image = image, .spares = LIST_HEAD_INIT(builder.spares) };
	int error;

	if (jump_obstacles() & DORMOUSE_LOCKDOWN)
		return -EPERM;
	if (jump_obstacles())
		return -EOPNOTSUPP;
	image_unload(image);
	error = build(&builder, load);
	list_splice(&builder.spares, &image->pages);
	kvfree(builder.own);
	if (error) {
		image_unload(image);
		return error;
	}
	pr_info("loaded %llu segments of %llu pages, %llu of which were free\n", image->count, builder.total,
		builder.own_count);
	return 0;
}

bool image_is_loaded(const struct image *image)
{
	return image->count;
}

void image_unload(struct image *image)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &image->pages, lru) {
		list_del(&page->lru);
		__free_page(page);
	}
	kvfree(image->segments);
	memset(image, 0, sizeof(*image));
	INIT_LIST_HEAD(&image->pages);
}
