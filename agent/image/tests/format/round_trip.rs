//! What is encoded is what is decoded.

use dormouse_image::{BLOCK, Commit, Extent, Header, IndexBlock, IndexBuilder, Label, Locator, SessionRecord, Uuid};
use proptest::prelude::*;

use crate::values::{self, IndexParts};

proptest! {
    #[test]
    fn any_label_comes_back(label in values::any_label()) {
        let bytes = label.encode().unwrap();
        prop_assert_eq!(bytes.len(), BLOCK);
        prop_assert_eq!(Label::decode(&bytes), Ok(label));
    }

    #[test]
    fn any_commit_record_comes_back(commit in values::any_commit()) {
        let bytes = commit.encode().unwrap();
        prop_assert_eq!(bytes.len(), BLOCK);
        prop_assert_eq!(Commit::decode(&bytes), Ok(commit));
    }

    #[test]
    fn a_reason_of_any_length_is_cut_between_characters(reason in ".{0,2000}") {
        let commit = Commit { reason: reason.clone(), ..values::commit() };
        let kept = Commit::decode(&commit.encode().unwrap()).unwrap().reason;
        prop_assert!(reason.starts_with(&kept));
        match reason.len() {
            0..=1024 => prop_assert_eq!(kept, reason),
            // A character has at most four bytes.
            _ => prop_assert!((1021..=1024).contains(&kept.len()), "{}", kept.len()),
        }
    }

    #[test]
    fn any_header_comes_back(header in values::any_header()) {
        let bytes = header.encode().unwrap();
        prop_assert!(bytes.len().is_multiple_of(BLOCK));
        prop_assert_eq!(Header::decode(&bytes), Ok(header));
    }

    #[test]
    fn any_session_record_comes_back(session in values::any_session()) {
        let bytes = session.encode().unwrap();
        prop_assert!(bytes.len().is_multiple_of(BLOCK));
        prop_assert_eq!(SessionRecord::decode(&bytes), Ok(session));
    }

    #[test]
    fn any_index_block_comes_back(
        parts in values::any_index_parts(),
        more in values::any_index_parts(),
        save in values::any_uuid(),
    ) {
        let mut builder = IndexBuilder::new(save);
        let (at, bytes, first) = build(&mut builder, &parts, 0);
        let block = IndexBlock::decode(&bytes, at).unwrap();
        prop_assert!(!block.prev.is_some());
        prop_assert!(holds(&block, save, &parts, 0));
        first.check(dormouse_image::Block::Index, &bytes).unwrap();

        // The second block of the same builder lies after the first and points back to it.
        let start = at + bytes.len() as u64;
        let shift = start - dormouse_image::layout::DATA_OFFSET;
        let (at, bytes, _) = build(&mut builder, &more, shift);
        let block = IndexBlock::decode(&bytes, at).unwrap();
        prop_assert_eq!(block.prev, first);
        prop_assert!(holds(&block, save, &more, shift));
    }
}

/// Builds one block of `parts`, all offsets moved by `shift`; returns where it lies, its bytes and its locator.
fn build(builder: &mut IndexBuilder, parts: &IndexParts, shift: u64) -> (u64, Vec<u8>, Locator) {
    for (chunk, extents) in &parts.chunks {
        let mut chunk = *chunk;
        chunk.offset += shift;
        assert!(!builder.is_full());
        builder.chunk(&chunk, extents).unwrap();
    }
    for run in &parts.zero {
        builder.zero(*run).unwrap();
    }
    let at = (parts.end + shift).next_multiple_of(4096);
    let (bytes, locator) = builder.finish(at).unwrap();
    assert!(builder.is_empty());
    (at, bytes, locator)
}

fn holds(block: &IndexBlock, save: Uuid, parts: &IndexParts, shift: u64) -> bool {
    let chunks = block.chunks().len() == parts.chunks.len()
        && block.chunks().zip(&parts.chunks).all(|(view, (chunk, extents))| {
            let mut chunk = *chunk;
            chunk.offset += shift;
            let pages: u32 = extents.iter().map(|extent| extent.pages).sum();
            *view.chunk == chunk && view.extents == extents && view.raw_len() == pages as usize * BLOCK
        });
    chunks && block.save_id == save && pages(&block.zero) == pages(&parts.zero)
}

/// Runs of pages with those joined that touch, since the builder does so too.
fn pages(runs: &[Extent]) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last)
                if last.pfn + u64::from(last.pages) == run.pfn && last.pages.checked_add(run.pages).is_some() =>
            {
                last.pages += run.pages;
            }
            _ => joined.push(*run),
        }
    }
    joined
}
