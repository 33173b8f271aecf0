/* SPDX-License-Identifier: GPL-2.0 */
/*
 * From this kernel into the other, and back.
 *
 * Three pieces run one after the other: dormouse_switch in this kernel's text, dormouse_control in the control page, at
 * its physical address, and, when the other kernel has come back, dormouse_back in this kernel's text again. The
 * control page alone is never exchanged, so its code must find everything relative to itself.
 */
#include <linux/linkage.h>
#include <linux/version.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/page_types.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>
#include <asm/ibt.h>

#include "dormouse.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
#define UNWIND_HINT_END_OF_STACK UNWIND_HINT_EMPTY
#endif

/* Paging cannot be left alone without them; whatever else CR4 switches on, the other kernel must not inherit. */
#define KEPT_IN_CR4	(X86_CR4_PAE | X86_CR4_LA57)
#define CLEARED_IN_CR0	(X86_CR0_AM | X86_CR0_WP | X86_CR0_TS | X86_CR0_EM)
#define FRED_BIT	32

	.data
	.balign 8
saved_rsp:	.quad 0
saved_cr0:	.quad 0
saved_cr3:	.quad 0
	.globl saved_cr4
saved_cr4:	.quad 0
saved_gs:	.quad 0
	.balign 8
saved_gdt:	.skip 16
saved_idt:	.skip 16
no_idt:		.skip 16

	.text
/*
 * void dormouse_switch(u64 control, u64 both): the control page's physical address, and the root of page tables that
 * map both this kernel and that page. Interrupts are off. Returns by way of dormouse_back.
 */
SYM_CODE_START(dormouse_switch)
	UNWIND_HINT_END_OF_STACK
	ENDBR
	pushq	%rbx
	pushq	%rbp
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushfq
	movq	%cr0, %rax
	movq	%rax, saved_cr0(%rip)
	movq	%cr3, %rax
	movq	%rax, saved_cr3(%rip)
	movq	%cr4, %rax
	movq	%rax, saved_cr4(%rip)
	movl	$MSR_GS_BASE, %ecx
	rdmsr
	movl	%eax, saved_gs(%rip)
	movl	%edx, saved_gs+4(%rip)
	sgdt	saved_gdt(%rip)
	sidt	saved_idt(%rip)
	movq	%rsp, saved_rsp(%rip)
	/* From here on an exception has nowhere to go, as in the kernel's own jump. */
	lidt	no_idt(%rip)
	movq	%rsi, %cr3
	/*
	 * Global pages, and whatever forbids to run code at a low address (LASS) or to jump there (CET), go before that is
	 * done.
	 */
	movq	%cr4, %rax
	andl	$KEPT_IN_CR4, %eax
	movq	%rax, %cr4
	ANNOTATE_RETPOLINE_SAFE
	jmp	*%rdi
SYM_CODE_END(dormouse_switch)

/* The other kernel has come back, this kernel's pages are in place, and page tables map them and the control page. */
SYM_CODE_START(dormouse_back)
	UNWIND_HINT_END_OF_STACK
	ENDBR
	movq	saved_rsp(%rip), %rsp
	lgdt	saved_gdt(%rip)
	lidt	saved_idt(%rip)
	/* CET and FRED come back when what they need has (processor.c, restore). */
	movq	saved_cr4(%rip), %rax
	andq	$~(1 << 23), %rax
	btrq	$FRED_BIT, %rax
	movq	%rax, %cr4
	movq	saved_cr3(%rip), %rax
	movq	%rax, %cr3
	movq	saved_cr0(%rip), %rax
	movq	%rax, %cr0
	movl	$__KERNEL_DS, %eax
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %fs
	movl	%eax, %gs
	/* After %gs, which may have cleared it: per-CPU data can be reached again. */
	movl	$MSR_GS_BASE, %ecx
	movl	saved_gs(%rip), %eax
	movl	saved_gs+4(%rip), %edx
	wrmsr
	pushq	$__KERNEL_CS
	leaq	.Lcode_segment(%rip), %rax
	pushq	%rax
	lretq
.Lcode_segment:
	UNWIND_HINT_END_OF_STACK
	ANNOTATE_NOENDBR
	popfq
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbp
	popq	%rbx
	RET
SYM_CODE_END(dormouse_back)

/*
 * What follows is data here, and code only where image.c puts it: at the beginning of the control page, which ends as a
 * stack. The addresses are physical, and no interrupt, exception or NMI can be taken.
 */
	.section .rodata
	.balign 16
SYM_DATA_START(dormouse_control)
	movq	data+DATA_IDENTITY(%rip), %rax
	movq	%rax, %cr3
	leaq	dormouse_control+PAGE_SIZE(%rip), %rsp
	call	exchange
	/* The pages were data, and are code: a serializing instruction. */
	movq	%cr3, %rax
	movq	%rax, %cr3
	/*
	 * The other kernel finds the way back on the stack, where `call` puts it. Below it lies a word that a kernel which
	 * returns, in place of jumping to it, leaves on top of the stack.
	 */
	movq	data+DATA_ENTRY(%rip), %rax
	pushq	%rax
	call	*%rax

	/*
	 * Back, in the page tables of whoever has jumped here. The word on top of its stack is where it can be entered
	 * again, or 0. It becomes the entry of the next jump.
	 */
	cli
	cld
	movq	(%rsp), %rax
	movq	%rax, data+DATA_ENTRY(%rip)
	movq	%cr4, %rax
	andl	$KEPT_IN_CR4, %eax
	movq	%rax, %cr4
	movq	data+DATA_IDENTITY(%rip), %rax
	movq	%rax, %cr3
	leaq	dormouse_control+PAGE_SIZE(%rip), %rsp
	call	exchange
	/* This kernel's tables have pages that must not be executed, which is an error without EFER.NX. */
	movl	$MSR_EFER, %ecx
	movl	data+DATA_EFER(%rip), %eax
	movl	data+DATA_EFER+4(%rip), %edx
	wrmsr
	movq	data+DATA_BOTH(%rip), %rax
	movq	%rax, %cr3
	movq	data+DATA_BACK(%rip), %rax
	jmp	*%rax

/* Exchanges each destination with its source, word by word through registers. */
exchange:
	movq	%cr0, %rax
	andq	$~CLEARED_IN_CR0, %rax
	movq	%rax, %cr0
	leaq	data+DATA_LIST(%rip), %rsi
.Lnext:
	lodsq
	movq	%rax, %rbx
	andq	$~0xfff, %rbx
	testb	$2, %al			/* the list goes on in another page */
	cmovneq	%rbx, %rsi
	jne	.Lnext
	testb	$1, %al			/* a destination */
	cmovneq	%rbx, %rdi
	jne	.Lnext
	testb	$4, %al			/* the end */
	jne	.Ldone
	/* A source. A page that is its own source stays as it is. */
	movl	$PAGE_SIZE / 16, %ecx
.Lwords:
	movq	(%rdi), %r8
	movq	8(%rdi), %r9
	movq	(%rbx), %r10
	movq	8(%rbx), %r11
	movq	%r10, (%rdi)
	movq	%r11, 8(%rdi)
	movq	%r8, (%rbx)
	movq	%r9, 8(%rbx)
	addq	$16, %rdi
	addq	$16, %rbx
	decl	%ecx
	jne	.Lwords
	jmp	.Lnext
.Ldone:
	ret
	int3

	.balign 8
SYM_DATA_START(dormouse_control_data)
data:
	.skip	DATA_SIZE
SYM_DATA_END(dormouse_control_data)
SYM_DATA_START(dormouse_control_end)
	.quad	0
SYM_DATA_END(dormouse_control_end)
SYM_DATA_END(dormouse_control)

	.section .note.GNU-stack, "", @progbits
