// SPDX-License-Identifier: GPL-2.0
/*
 * Loading a kernel: checks what user space wants, and makes what the jump works from, a list of pages to exchange, page
 * tables and the control page.
 *
 * The list has the form of kexec's (include/linux/kexec.h): words with a page's address and, in the low bits, what it
 * is. A destination is followed by the sources for it and the pages after it, one each. The other kernel follows the
 * list to find where this kernel's pages are while they are exchanged, so the form is part of the interface.
 *
 * No page that the jump works from may lie in a destination. A page that the allocator gives out from there is no loss:
 * it is in use by nobody but this image, so it becomes its own source, and the exchange leaves it alone. So loading
 * takes one page for each page of a destination, never more, however much of the destinations is free.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/overflow.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
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

/* An entry of a page table: present, writable, accessed, dirty; and one that maps 2 MiB. */
#define TABLE		0x063ULL
#define LARGE		0x0e3ULL
#define ADDRESS		0x000ffffffffff000ULL

struct builder {
	struct image *image;
	struct list_head spares;	/* sources that no destination has yet */
	u64 total;			/* pages in all destinations */
	unsigned long *own;		/* those that are their own source, a bit for each page of a destination */
	u64 own_count;
	u64 *next, *last;		/* in the list: the next word, and the page's last one */
};

/* The number of the destination's page at a physical address, counted over all segments. */
static bool find_destination(const struct image *image, u64 address, u64 *number)
{
	const struct dormouse_segment *segment = image->segments;
	u64 before = 0;

	for (; segment < image->segments + image->count; segment++) {
		if (address >= segment->start && address - segment->start < segment->size) {
			*number = before + ((address - segment->start) >> PAGE_SHIFT);
			return true;
		}
		before += segment->size >> PAGE_SHIFT;
	}
	return false;
}

/* A zeroed page outside of every destination. The image owns it, and what else was given out on the way to it. */
static struct page *take_page(struct builder *builder)
{
	for (;;) {
		/* Neither the OOM killer nor a warning: a hibernation that does not fit is refused by its caller. */
		struct page *page = alloc_page(GFP_KERNEL | __GFP_ZERO | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
		u64 number;

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

/* How much of a range the kernel knows by these flags and this description. */
u64 length_known_as(u64 start, u64 end, unsigned long flags, unsigned long description)
{
	u64 length = 0;

	walk_iomem_res_desc(description, flags, start, end - 1, &length, add_length);
	return length;
}

static int read_segments(struct builder *builder, const struct dormouse_load *load)
{
	struct image *image = builder->image;
	struct dormouse_segment *segments;
	u64 i, end, previous = 0;
	bool has_entry = false;

	if (!load->count || load->count > MOST_SEGMENTS)
		return -EINVAL;
	segments = vmemdup_user(u64_to_user_ptr(load->segments), load->count * sizeof(*segments));
	if (IS_ERR(segments))
		return PTR_ERR(segments);
	image->segments = segments;
	for (i = 0; i < load->count; i++, previous = end) {
		const struct dormouse_segment *segment = &segments[i];

		if (!PAGE_ALIGNED(segment->start) || !PAGE_ALIGNED(segment->size) || !segment->size ||
		    check_add_overflow(segment->start, segment->size, &end) ||
		    length_known_as(segment->start, end, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, IORES_DESC_NONE) !=
			    segment->size)
			return -EADDRNOTAVAIL;
		if (segment->start < previous || segment->data_size > segment->size)
			return -EINVAL;
		has_entry |= load->entry >= segment->start && load->entry < end;
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

/* Maps a range at its own address, rounded to 2 MiB. What else these hold is not touched, ever. */
static int map_resource(struct resource *resource, void *argument)
{
	struct builder *builder = argument;
	u64 address = ALIGN_DOWN(resource->start, SZ_2M);

	for (; address <= resource->end; address += SZ_2M) {
		u64 *table = builder->image->identity;
		int shift = __read_cr4() & X86_CR4_LA57 ? 48 : 39;

		for (; shift > 21; shift -= 9) {
			u64 *entry = &table[(address >> shift) % WORDS];

			if (!*entry) {
				u64 *below = take_words(builder);

				if (!below)
					return -ENOMEM;
				*entry = __pa(below) | TABLE;
			}
			table = __va(*entry & ADDRESS);
		}
		table[(address >> shift) % WORDS] = address | LARGE;
	}
	return 0;
}

/*
 * Memory at its own address, as a kernel that is started by kexec finds it: RAM, and what it reads of the firmware's
 * before it has tables of its own (arch/x86/kernel/machine_kexec_64.c, init_pgtable).
 */
static int map_memory(struct builder *builder)
{
	static const struct { unsigned long flags, description; } kinds[] = {
		{ IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, IORES_DESC_NONE },
		{ IORESOURCE_MEM, IORES_DESC_ACPI_TABLES },
		{ IORESOURCE_MEM, IORES_DESC_ACPI_NV_STORAGE },
	};
	unsigned int i;
	int error;

	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		error = walk_iomem_res_desc(kinds[i].description, kinds[i].flags, 0, -1, builder, map_resource);
		/* It returns -EINVAL where there is nothing of the kind. */
		if (error && error != -EINVAL)
			return error;
	}
	return 0;
}

/* Appends a word to the list. The last word of each page leads to the next page. */
static int append(struct builder *builder, u64 word)
{
	if (builder->next == builder->last) {
		u64 *words = take_words(builder);

		if (!words)
			return -ENOMEM;
		*builder->next = __pa(words) | INDIRECTION;
		builder->next = words;
		builder->last = words + WORDS - 1;
	}
	*builder->next++ = word;
	return 0;
}

static int load_segment(struct builder *builder, const struct dormouse_segment *segment, u64 number)
{
	int error = append(builder, segment->start | DESTINATION);
	u64 at;

	for (at = 0; !error && at < segment->size; at += PAGE_SIZE, number++) {
		struct page *page = pfn_to_page((segment->start + at) >> PAGE_SHIFT);

		if (!test_bit(number, builder->own)) {
			page = list_first_entry(&builder->spares, struct page, lru);
			list_move(&page->lru, &builder->image->pages);
		}
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
	int error = read_segments(builder, load);
	u64 *code, i, number = 0, taken = 0;

	if (error)
		return error;
	code = take_words(builder);
	image->identity = take_words(builder);
	image->both = take_words(builder);
	if (!code || !image->identity || !image->both)
		return -ENOMEM;
	memcpy(code, dormouse_control, dormouse_control_end - dormouse_control);
	image->control = code + (dormouse_control_data - dormouse_control) / sizeof(u64);
	image->control[DATA_IDENTITY / sizeof(u64)] = __pa(image->identity);
	image->control[DATA_BOTH / sizeof(u64)] = __pa(image->both);
	image->control[DATA_ENTRY / sizeof(u64)] = load->entry;
	image->control[DATA_BACK / sizeof(u64)] = (u64)dormouse_back;
	error = map_memory(builder);
	if (error)
		return error;
	for (; taken < builder->total - builder->own_count; taken++) {
		struct page *page = take_page(builder);

		if (!page)
			return -ENOMEM;
		if (fatal_signal_pending(current))
			return -EINTR;
		list_move(&page->lru, &builder->spares);
		cond_resched();
	}
	/* The list begins as one that is full: its first page is found where any other is. */
	builder->next = builder->last = image->control + DATA_LIST / sizeof(u64);
	for (i = 0; i < image->count; i++) {
		error = load_segment(builder, &image->segments[i], number);
		if (error)
			return error;
		number += image->segments[i].size >> PAGE_SHIFT;
	}
	return append(builder, DONE);
}

/* Loads a kernel in place of the one that is loaded. Where that fails, none is loaded. */
int image_load(struct image *image, const struct dormouse_load *load)
{
	struct builder builder = { .image = image, .spares = LIST_HEAD_INIT(builder.spares) };
	int error;

	image_unload(image);
	error = build(&builder, load);
	list_splice(&builder.spares, &image->pages);
	kvfree(builder.own);
	if (error)
		image_unload(image);
	else
		pr_info("loaded %llu pages, %llu of which were free\n", builder.total, builder.own_count);
	return error;
}

/* Keys may have been in it, and what another kernel has done with them. */
void image_unload(struct image *image)
{
	struct page *page, *next;

	list_for_each_entry_safe(page, next, &image->pages, lru) {
		clear_page(page_address(page));
		__free_page(page);
	}
	kvfree(image->segments);
	memset(image, 0, sizeof(*image));
	INIT_LIST_HEAD(&image->pages);
}
