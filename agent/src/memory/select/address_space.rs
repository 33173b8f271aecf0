//! A stopped kernel's virtual memory, through its page tables.

use std::cell::RefCell;
use std::collections::HashMap;

use dormouse_sys::{PAGE_LEN, PAGE_SIZE};

use crate::memory::arch::Paging;
use crate::memory::select::{KernelLayout, Physical, SelectError, word};

/// Pages that [`Kept`] keeps, at most; each thread has its own.
const KEPT: usize = 64;

/// A kernel's virtual memory.
pub(super) struct Virtual<'a, M> {
    pub(super) memory: &'a M,
    paging: Paging,
    words: Kept<'a, M>,
}

impl<'a, M: Physical> Virtual<'a, M> {
    pub(super) fn new(memory: &'a M, layout: &KernelLayout) -> Virtual<'a, M> {
        Virtual { memory, paging: layout.paging, words: Kept { memory, pages: RefCell::default() } }
    }

    /// The physical address of `address`, and how many bytes from there on are mapped by the same entry.
    pub(super) fn translate(&self, address: u64) -> Result<(u64, u64), SelectError> {
        self.paging.translate(&self.words, address)
    }

    /// Reads a little-endian word of 64 bits.
    pub(super) fn word(&self, address: u64) -> Result<u64, SelectError> {
        word(&self.words, self.translate(address)?.0)
    }
}

/// Memory of which the pages that were read are kept.
///
/// Page tables, arrays of sections and `struct page`s lie far apart, and each change from one to the other may cost a
/// new window onto the memory (`crate::pipeline::window`).
struct Kept<'a, M> {
    memory: &'a M,
    pages: RefCell<HashMap<u64, Vec<u8>>>,
}

impl<M: Physical> Physical for Kept<'_, M> {
    fn look<T>(&self, address: u64, len: u64, look: impl FnOnce(&[u8]) -> T) -> Result<T, SelectError> {
        let within = address % PAGE_SIZE;
        let start = address - within;
        let mut pages = self.pages.borrow_mut();
        if !pages.contains_key(&start) {
            if pages.len() >= KEPT {
                pages.clear();
            }
            let mut page = vec![0; PAGE_LEN];
            self.memory.read(start, &mut page)?;
            pages.insert(start, page);
        }
        let end = usize::try_from(within.saturating_add(len)).map_or(PAGE_LEN, |end| end.min(PAGE_LEN));
        let found = usize::try_from(within).ok().and_then(|at| pages.get(&start)?.get(at..end));
        Ok(look(found.unwrap_or_default()))
    }
}
