//! Sets of page frames that take little memory where neighbours are alike.

use dormouse_image::PfnRange;

/// Bits of a chunk: with one for each page frame, a section of 128 MiB.
const CHUNK_BITS: u64 = 1 << 15;
const CHUNK_WORDS: usize = (CHUNK_BITS / 64) as usize;

/// What a set takes at most, in bits: 8 MiB.
const MOST_BITS: u64 = 1 << 26;

/// A set of page frames: a bit for each, or for each group of 2^`grain`. What is alike throughout a chunk takes no
/// bits.
///
/// Two sets of the same grain are equal exactly if they have the same frames, after [`Frames::unite`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Frames {
    grain: u32,
    /// Chunks that are not empty, ascending by number.
    chunks: Vec<(u64, Chunk)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    All,
    Some(Box<[u64; CHUNK_WORDS]>),
}

impl Frames {
    /// An empty set that never takes more than 8 MiB for `pages` page frames. Up to 256 GiB of memory it is exact; of
    /// larger memory, it leaves out what does not fill a group (4 pages of 1 TiB).
    pub(super) fn bounded(pages: u64) -> Frames {
        let grain = (0..u64::BITS).find(|grain| pages >> grain <= MOST_BITS).unwrap_or(0);
        Frames { grain, chunks: Vec::new() }
    }

    /// An empty set of the same kind.
    pub(super) fn like(&self) -> Frames {
        Frames { grain: self.grain, chunks: Vec::new() }
    }

    /// How many page frames are in it.
    pub(super) fn len(&self) -> u64 {
        let bits = |chunk: &Chunk| match chunk {
            Chunk::All => CHUNK_BITS,
            Chunk::Some(words) => words.iter().map(|word| u64::from(word.count_ones())).sum(),
        };
        self.chunks.iter().map(|(_, chunk)| bits(chunk)).sum::<u64>() << self.grain
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let bitmaps = self.chunks.iter().filter(|(_, chunk)| matches!(chunk, Chunk::Some(_))).count();
        self.chunks.capacity() * size_of::<(u64, Chunk)>() + bitmaps * CHUNK_WORDS * 8
    }

    pub(super) fn contains(&self, pfn: u64) -> bool {
        let bit = pfn >> self.grain;
        let number = bit / CHUNK_BITS;
        let found = self.chunks.binary_search_by_key(&number, |(number, _)| *number);
        match found.ok().and_then(|at| self.chunks.get(at)) {
            None => false,
            Some((_, Chunk::All)) => true,
            Some((_, Chunk::Some(words))) => words[word_of(bit)] >> (bit % 64) & 1 == 1,
        }
    }

    /// Whether the first of `frames` is in the set, and the first of them of which that is not so, or their end.
    pub(super) fn run(&self, frames: PfnRange) -> (bool, u64) {
        let is_in = self.contains(frames.start);
        let (mut bit, end) = (frames.start >> self.grain, frames.end.div_ceil(1 << self.grain));
        let mut at = self.chunks.partition_point(|(number, _)| *number < bit / CHUNK_BITS);
        while bit < end {
            let chunk = self.chunks.get(at);
            let here = chunk.filter(|(number, _)| *number == bit / CHUNK_BITS);
            match here {
                None if is_in => break,
                None => bit = chunk.map_or(end, |(number, _)| number * CHUNK_BITS),
                Some((_, Chunk::All)) if is_in => (bit, at) = ((bit / CHUNK_BITS + 1) * CHUNK_BITS, at + 1),
                Some((_, Chunk::All)) => break,
                Some((_, Chunk::Some(words))) => {
                    let flip = if is_in { u64::MAX } else { 0 };
                    let differing = (words[word_of(bit)] ^ flip) >> (bit % 64);
                    if differing != 0 {
                        bit += u64::from(differing.trailing_zeros());
                        break;
                    }
                    bit = (bit / 64 + 1) * 64;
                    at += usize::from(bit.is_multiple_of(CHUNK_BITS));
                }
            }
        }
        (is_in, (bit << self.grain).clamp(frames.start, frames.end.max(frames.start)))
    }

    /// Adds the groups that lie in `run` whole.
    pub(super) fn add(&mut self, run: PfnRange) {
        let (mut start, end) = (run.start.div_ceil(1 << self.grain), run.end >> self.grain);
        while start < end {
            let number = start / CHUNK_BITS;
            let chunk_end = end.min((number + 1) * CHUNK_BITS);
            let is_whole = chunk_end - start == CHUNK_BITS;
            let chunk = self.chunk(number);
            if is_whole {
                *chunk = Chunk::All;
            }
            if let Chunk::Some(words) = chunk {
                while start < chunk_end {
                    let word_end = chunk_end.min((start / 64 + 1) * 64);
                    // 1 to 64 bits.
                    words[word_of(start)] |= u64::MAX >> (64 - (word_end - start)) << (start % 64);
                    start = word_end;
                }
            }
            start = chunk_end;
        }
    }

    /// The chunk of this number, which is added where it is missing. The last one is found at once.
    fn chunk(&mut self, number: u64) -> &mut Chunk {
        let at = match self.chunks.last() {
            None => Err(0),
            Some((last, _)) if *last == number => Ok(self.chunks.len() - 1),
            Some((last, _)) if *last < number => Err(self.chunks.len()),
            Some(_) => self.chunks.binary_search_by_key(&number, |(number, _)| *number),
        };
        let at = at.unwrap_or_else(|at| {
            self.chunks.insert(at, (number, Chunk::Some(Box::new([0; CHUNK_WORDS]))));
            at
        });
        &mut self.chunks[at].1
    }

    /// Unites sets of this one's grain with it, and leaves one form for the same frames.
    pub(super) fn unite(&mut self, others: impl IntoIterator<Item = Frames>) {
        self.chunks.extend(others.into_iter().flat_map(|other| other.chunks));
        self.chunks.sort_by_key(|(number, _)| *number);
        self.chunks.dedup_by(|(second, from), (first, into)| {
            let is_same = first == second;
            if is_same {
                match (&mut *into, &*from) {
                    (Chunk::All, _) => {}
                    (into, Chunk::All) => *into = Chunk::All,
                    (Chunk::Some(into), Chunk::Some(from)) => {
                        into.iter_mut().zip(from.iter()).for_each(|(into, from)| *into |= from);
                    }
                }
            }
            is_same
        });
        for (_, chunk) in &mut self.chunks {
            if matches!(chunk, Chunk::Some(words) if words.iter().all(|word| *word == u64::MAX)) {
                *chunk = Chunk::All;
            }
        }
        self.chunks.shrink_to_fit();
    }
}

/// Where a bit is in its chunk.
fn word_of(bit: u64) -> usize {
    // Less than a chunk's words.
    usize::try_from(bit % CHUNK_BITS / 64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// The groups of `1 << grain` frames that lie whole in one of the runs.
    fn reference(runs: &[PfnRange], grain: u32) -> BTreeSet<u64> {
        let groups = |run: &PfnRange| run.start.div_ceil(1 << grain)..run.end >> grain;
        runs.iter().flat_map(groups).flat_map(|group| group << grain..(group + 1) << grain).collect()
    }

    /// Runs of a few pages to a few chunks, whose ends are often those of words and chunks.
    fn runs() -> impl Strategy<Value = Vec<PfnRange>> {
        let start = prop_oneof![0..2 * CHUNK_BITS, (0..1024_u64).prop_map(|at| at * 64), Just(0), Just(CHUNK_BITS)];
        let len = prop_oneof![0..80_u64, Just(64), Just(CHUNK_BITS), 0..CHUNK_BITS * 3 / 2];
        let run = (start, len).prop_map(|(start, len)| PfnRange { start, end: start + len });
        proptest::collection::vec(run, 0..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_set_has_what_was_added_and_no_more(runs in runs(), more in runs(), grain in 0..4_u32) {
            let empty = Frames { grain, ..Frames::default() };
            let of = |runs: &[PfnRange]| {
                let mut set = empty.like();
                runs.iter().for_each(|run| set.add(*run));
                set
            };
            let (mut whole, mut parts) = (empty.like(), empty.like());
            whole.unite([of(&[runs.as_slice(), &more].concat())]);
            parts.unite([of(&more), of(&runs)]);
            prop_assert_eq!(&whole, &parts);
            let expected = reference(&[runs, more].concat(), grain);
            prop_assert_eq!(whole.len(), expected.len() as u64);
            // By runs, which must be as long as they can be, and page by page.
            let (mut start, mut last, end) = (0, None, 5 * CHUNK_BITS);
            while start < end {
                let (is_in, next) = whole.run(PfnRange { start, end });
                prop_assert!(next > start && last != Some(is_in));
                for pfn in start..next {
                    prop_assert_eq!(expected.contains(&pfn), is_in);
                }
                prop_assert!(whole.contains(start) == is_in && whole.contains(next - 1) == is_in);
                (start, last) = (next, Some(is_in));
            }
        }
    }

    #[test]
    fn a_set_is_small_where_memory_is_alike_and_bounded_where_it_is_not() {
        let tebibyte = 1 << 28;
        let mut all = Frames::bounded(tebibyte);
        all.add(PfnRange { start: 0, end: tebibyte });
        assert!(all.bytes() < 64 << 10 && all.len() == tebibyte);
        let mut mixed = Frames::bounded(tebibyte);
        (0..tebibyte / 8).for_each(|at| mixed.add(PfnRange { start: at * 8, end: at * 8 + 4 }));
        assert!(mixed.bytes() < 9 << 20 && mixed.len() == tebibyte / 2);
        // Exact up to 256 GiB.
        assert_eq!([1 << 26, (1 << 26) + 1].map(|pages| Frames::bounded(pages).grain), [0, 1]);
    }

    #[test]
    fn frames_at_the_end_of_the_address_space_are_frames() {
        let mut set = Frames::default();
        let run = PfnRange { start: (1 << 52) - 3, end: 1 << 52 };
        set.add(run);
        assert_eq!(set.run(run), (true, run.end));
        assert_eq!(set.run(PfnRange { start: 5, end: 1 << 52 }), (false, run.start));
        assert!(set.bytes() < 8 << 10);
    }
}
