//! The machine code that runs between two kernels.
//!
//! Two stubs, both position independent, both entered in 64-bit mode on an identity map with interrupts off:
//!
//! * the **entry stub** starts a loaded kernel by the 64-bit boot protocol (Linux 6.12,
//!   Documentation/arch/x86/boot.rst, '64-bit Boot Protocol') and tells it where to jump back to;
//! * the **bridge** goes the other way, from B or D into A's jump-back entry.
//!
//! What each finds on entry is fixed by `identity_mapped` in arch/x86/kernel/relocate_kernel_64.S: with a
//! preserved context the word at the stack top is the caller's re-entry address, without one it is 0.

#![expect(unsafe_code, reason = "global_asm!, and taking the code's bytes")]

use std::arch::global_asm;

/// Space that the entry stub takes, code, descriptor table and stack, in bytes: one page.
pub const ENTRY_SIZE: usize = 4096;
/// Space that the bridge's code and stack take, in bytes: one page. Its page tables are not in it.
pub const BRIDGE_CODE_SIZE: usize = 4096;

global_asm!(
    ".section .rodata.dormouse_stubs, \"a\"",
    ".balign 16",
    ".globl dormouse_entry_start, dormouse_entry_end, dormouse_entry_values",
    "dormouse_entry_start:",
    "    cli",
    "    cld",
    // The jump-back entry, as 16 hexadecimal digits, into the command line.
    "    mov rax, [rsp]",
    "    mov rdi, [rip + dormouse_entry_values]",
    "    test rdi, rdi",
    "    jz 3f",
    "    mov ecx, 16",
    "1:  rol rax, 4",
    "    mov edx, eax",
    "    and edx, 15",
    "    add edx, 48", // '0'
    "    cmp edx, 57", // '9'
    "    jbe 2f",
    "    add edx, 39", // to 'a'
    "2:  mov [rdi], dl",
    "    inc rdi",
    "    dec ecx",
    "    jnz 1b",
    // A stack of our own: the caller's lies in its swap page.
    "3:  lea rsp, [rip + dormouse_entry_start + {entry_size}]",
    // The boot protocol wants __BOOT_CS = 0x10 and __BOOT_DS = 0x18, flat.
    "    lea rax, [rip + 5f]",
    "    mov [rip + 6f + 2], rax",
    "    lgdt [rip + 6f]",
    "    mov eax, 0x18",
    "    mov ds, eax",
    "    mov es, eax",
    "    mov fs, eax",
    "    mov gs, eax",
    "    mov ss, eax",
    "    push 0x10",
    "    lea rax, [rip + 4f]",
    "    push rax",
    "    retfq",
    "4:  mov rsi, [rip + dormouse_entry_values + 8]",
    "    mov rax, [rip + dormouse_entry_values + 16]",
    "    xor ebx, ebx",
    "    xor ecx, ecx",
    "    xor edx, edx",
    "    xor edi, edi",
    "    xor ebp, ebp",
    "    jmp rax",
    ".balign 16",
    "5:  .quad 0",
    "    .quad 0",
    "    .quad 0x00af9a000000ffff", // 0x10: code, 64 bit, ring 0
    "    .quad 0x00cf92000000ffff", // 0x18: data, flat, ring 0
    "6:  .word 31",
    "    .quad 0",
    ".balign 8",
    "dormouse_entry_values:",
    "    .quad 0", // where the digits go, or 0
    "    .quad 0", // boot_params
    "    .quad 0", // the kernel's 64-bit entry point
    "dormouse_entry_end:",
    "",
    ".balign 16",
    ".globl dormouse_bridge_start, dormouse_bridge_end, dormouse_bridge_values",
    "dormouse_bridge_start:",
    "    cli",
    "    cld",
    // A reads its peer's re-entry address from the stack top: pass on what our own kernel left us.
    "    mov rax, [rsp]",
    "    lea rsp, [rip + dormouse_bridge_start + {bridge_size} - 16]",
    "    mov [rsp], rax",
    // CR4.LA57 cannot change in 64-bit mode, so it says which root the hardware will walk.
    "    mov rdx, [rip + dormouse_bridge_values]",
    "    mov rcx, cr4",
    "    bt ecx, 12",
    "    jnc 1f",
    "    mov rdx, [rip + dormouse_bridge_values + 8]",
    "1:  mov cr3, rdx",
    "    mov rax, [rip + dormouse_bridge_values + 16]",
    "    jmp rax",
    ".balign 8",
    "dormouse_bridge_values:",
    "    .quad 0", // the root of a 4-level table
    "    .quad 0", // the root of a 5-level table
    "    .quad 0", // A's jump-back entry
    "dormouse_bridge_end:",
    ".text",
    entry_size = const ENTRY_SIZE,
    bridge_size = const BRIDGE_CODE_SIZE,
);

// SAFETY: the labels of the block above; nothing but their addresses is used.
unsafe extern "C" {
    static dormouse_entry_start: u8;
    static dormouse_entry_values: u8;
    static dormouse_entry_end: u8;
    static dormouse_bridge_start: u8;
    static dormouse_bridge_values: u8;
    static dormouse_bridge_end: u8;
}

/// The page of the entry stub.
///
/// * `digits`: physical address of the 16 bytes that receive the jump-back entry, or `None`.
/// * `boot_params`: physical address of the kernel's `struct boot_params`.
/// * `kernel`: physical address of the kernel's 64-bit entry point.
#[must_use]
pub fn entry(digits: Option<u64>, boot_params: u64, kernel: u64) -> Vec<u8> {
    let labels = (&raw const dormouse_entry_start, &raw const dormouse_entry_values, &raw const dormouse_entry_end);
    assemble(labels, ENTRY_SIZE, [digits.unwrap_or(0), boot_params, kernel])
}

/// The page of the bridge's code.
///
/// * `pml4`, `pml5`: physical addresses of the roots for 4-level and 5-level paging; both must map the
///   bridge and the page of `jump_back` at their own addresses.
/// * `jump_back`: A's jump-back entry, a physical address.
#[must_use]
pub fn bridge(pml4: u64, pml5: u64, jump_back: u64) -> Vec<u8> {
    let labels = (&raw const dormouse_bridge_start, &raw const dormouse_bridge_values, &raw const dormouse_bridge_end);
    assemble(labels, BRIDGE_CODE_SIZE, [pml4, pml5, jump_back])
}

fn assemble((start, values, end): (*const u8, *const u8, *const u8), size: usize, words: [u64; 3]) -> Vec<u8> {
    let len = end as usize - start as usize;
    // SAFETY: `start` and `end` are labels of one contiguous read-only section, in this order.
    let mut page = unsafe { std::slice::from_raw_parts(start, len) }.to_vec();
    let offset = values as usize - start as usize;
    page.truncate(offset);
    page.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    page.resize(size, 0);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stubs_carry_their_values_and_leave_room_for_a_stack() {
        for page in [entry(Some(0x1122_3344_5566_7788), 2, 3), bridge(0x1122_3344_5566_7788, 2, 3)] {
            let values = 0x1122_3344_5566_7788_u64.to_le_bytes();
            let at = page.windows(8).position(|window| window == values);
            assert!(at.is_some_and(|at| page[at + 8] == 2 && page[at + 16] == 3 && at < 1024), "{at:?}");
            assert_eq!(page.len(), 4096);
            assert!(page[2048..].iter().all(|byte| *byte == 0));
        }
    }
}
