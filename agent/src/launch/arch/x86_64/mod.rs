//! x86-64: bzImage, boot_params, the ELF core header, the bridge's page tables.

pub mod boot_params;
pub mod bridge;
pub mod bzimage;
pub mod elfcorehdr;
