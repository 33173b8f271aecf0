// SPDX-License-Identifier: GPL-2.0
/*
 * What the boot CPU has that memory does not, saved before the jump and restored after it: the same as the kernel's own
 * hibernation takes care of (arch/x86/power/cpu.c), by other means where that is not exported.
 *
 * Not here, because syscore_resume() does it: APICs, microcode, clocks, machine checks, what a hypervisor was told.
 */
#include <linux/version.h>
#include <asm/apic.h>
#include <asm/cpufeature.h>
#include <asm/debugreg.h>
#include <asm/desc.h>
#include <asm/fpu/api.h>
#include <asm/fpu/xcr.h>
#include <asm/msr.h>
#include <asm/x86_init.h>

#include "dormouse.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 16, 0)
#define rdmsrq_safe rdmsrl_safe
#define wrmsrq_safe wrmsrl_safe
#endif

/*
 * Each is read and written only where this CPU has it. Kernels name the newer ones one after the other, so those have
 * their numbers here. Whoever adds a mitigation to the kernel that sets a bit once at boot adds an MSR to this list.
 */
static const u32 msr_numbers[] = {
	MSR_FS_BASE, MSR_KERNEL_GS_BASE,
	/* system calls */
	MSR_STAR, MSR_LSTAR, MSR_CSTAR, MSR_SYSCALL_MASK,
	MSR_IA32_SYSENTER_CS, MSR_IA32_SYSENTER_ESP, MSR_IA32_SYSENTER_EIP,
	/* memory types, features, time */
	MSR_IA32_CR_PAT, MSR_IA32_MISC_ENABLE, MSR_IA32_FEAT_CTL, MSR_MISC_FEATURES_ENABLES, MSR_TEST_CTRL,
	MSR_TSC_AUX, MSR_IA32_TSC_ADJUST, MSR_IA32_THERM_CONTROL,
	/* extended states */
	MSR_IA32_XSS, MSR_IA32_XFD,
	/* debugging: branch traces, and where they are stored */
	MSR_IA32_DEBUGCTLMSR, MSR_IA32_DS_AREA,
	/* speculation */
	MSR_IA32_SPEC_CTRL, MSR_IA32_TSX_CTRL, MSR_TSX_FORCE_ABORT, MSR_IA32_MCU_OPT_CTRL,
	MSR_AMD64_VIRT_SPEC_CTRL, MSR_AMD64_LS_CFG,
	0xc0011004,	/* AMD: CPUID leaf 1, where RDRAND is hidden */
	0xc0011028,	/* AMD: FP_CFG */
	0xc0011029,	/* AMD: DE_CFG */
	0xc001102e,	/* AMD: BP_CFG */
	0xc00110e3,	/* AMD Zen 2: the bit against a wrong prediction */
	/* control flow: S_CET, the supervisor's shadow stacks */
	0x6a2, 0x6a4, 0x6a5, 0x6a6, 0x6a8,
	/* FRED: stack pointers of levels 0 to 3, stack levels, shadow stacks of levels 1 to 3, configuration */
	0x1cc, 0x1cd, 0x1ce, 0x1cf, 0x1d0, 0x1d1, 0x1d2, 0x1d3, 0x1d4,
};

static struct {
	u64 msrs[ARRAY_SIZE(msr_numbers)];
	bool has_msr[ARRAY_SIZE(msr_numbers)];
	u64 xcr0;
	unsigned long dr[4], dr7;
	u16 ldt, tr;
} saved;

/* Of those that have changed: some cannot be written as they read, such as one that firmware has locked. */
void processor_restore_msrs(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(msr_numbers); i++) {
		u64 now;

		if (saved.has_msr[i] && !rdmsrq_safe(msr_numbers[i], &now) && now != saved.msrs[i])
			wrmsrq_safe(msr_numbers[i], saved.msrs[i]);
	}
}

static void save(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(msr_numbers); i++)
		saved.has_msr[i] = !rdmsrq_safe(msr_numbers[i], &saved.msrs[i]);
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		saved.xcr0 = xgetbv(XCR_XFEATURE_ENABLED_MASK);
	/* hw_breakpoint_restore() is for KVM alone since Linux 7. */
	for (i = 0; i < ARRAY_SIZE(saved.dr); i++)
		saved.dr[i] = native_get_debugreg(i);
	saved.dr7 = native_get_debugreg(7);
	/* No breakpoint may strike where no exception can be taken. */
	native_set_debugreg(7, 0);
	asm volatile("sldt %0" : "=m" (saved.ldt));
	asm volatile("str %0" : "=m" (saved.tr));
	x86_platform.save_sched_clock_state();
}

/*
 * The task register is loaded from its descriptor, which the CPU marks as busy when it does: it must not be so before,
 * and must lie where the CPU may write. The table that is loaded normally is a read-only alias of this one.
 */
static void restore_descriptors(void)
{
	struct desc_struct *table = get_cpu_gdt_rw(smp_processor_id());
	struct desc_ptr writable = { .size = GDT_SIZE - 1, .address = (unsigned long)table };
	tss_desc *tss = (tss_desc *)&table[saved.tr / sizeof(*table)];
	struct desc_ptr normal;

	tss->type = DESC_TSS;
	asm volatile("sgdt %0" : "=m" (normal));
	asm volatile("lgdt %0" : : "m" (writable));
	asm volatile("ltr %0" : : "m" (saved.tr) : "memory");
	asm volatile("lgdt %0" : : "m" (normal));
	asm volatile("lldt %0" : : "m" (saved.ldt));
}

static void restore(void)
{
	unsigned int i;

	restore_descriptors();
	if (boot_cpu_has(X86_FEATURE_OSXSAVE))
		xsetbv(XCR_XFEATURE_ENABLED_MASK, saved.xcr0);
	processor_restore_msrs();
	/* With S_CET and FRED's MSRs as they were. */
	asm volatile("mov %0, %%cr4" : : "r" (saved_cr4) : "memory");
	x86_platform.restore_sched_clock_state();
	for (i = 0; i < ARRAY_SIZE(saved.dr); i++)
		native_set_debugreg(i, saved.dr[i]);
	native_set_debugreg(6, DR6_RESERVED);
	native_set_debugreg(7, saved.dr7);
}

/*
 * "Virtual wire": the local APIC lets the old interrupt controller through, as firmware leaves it, so that another kernel
 * can have a timer before it has set its own interrupts up. syscore_suspend() has masked everything else, and
 * syscore_resume() writes all of it anew. The kernel's own jump does the same (machine_kexec, restore_boot_irq_mode).
 */
static void wire_virtually(void)
{
	if (!boot_cpu_has(X86_FEATURE_APIC) || !apic || !apic->write)
		return;
	apic->write(APIC_SPIV, APIC_SPIV_APIC_ENABLED | 0xf);
	apic->write(APIC_LVT0, APIC_DM_EXTINT);
	apic->write(APIC_LVT1, APIC_DM_NMI);
}

/*
 * Jumps, and returns when this kernel goes on, perhaps days later and on another boot of the machine. Until then no
 * function may be entered that a tracer could be attached to: the assembler code has no such place.
 */
notrace void processor_jump(struct image *image)
{
	u64 *pgd = __va(__read_cr3() & CR3_ADDR_MASK);

	wire_virtually();
	kernel_fpu_begin();
	save();
	rdmsrq_safe(MSR_EFER, &image->control[DATA_EFER / sizeof(u64)]);
	/* Low addresses are memory's own, high ones this kernel's as they are now. */
	memcpy(image->both, image->identity, PAGE_SIZE / 2);
	memcpy(image->both + PAGE_SIZE / 2 / sizeof(u64), pgd + PAGE_SIZE / 2 / sizeof(u64), PAGE_SIZE / 2);
	dormouse_switch(__pa(image->control) & PAGE_MASK, __pa(image->both));
	restore();
	kernel_fpu_end();
}
