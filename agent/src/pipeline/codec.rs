//! Pages to stored bytes and back: one context for each worker, used again for each chunk.

use std::io;

use dormouse_image::Codec;

/// How a chunk is to be stored, from the quickest to the densest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// As it is.
    Store,
    /// One zstd frame of this level.
    Zstd(i32),
}

/// The room that [`Encoder::encode`] wants for `len` bytes: what does not shrink grows a little before that is noticed.
pub(super) fn room_for(len: usize) -> usize {
    zstd::zstd_safe::compress_bound(len)
}

/// Compresses.
pub(super) struct Encoder {
    zstd: zstd::bulk::Compressor<'static>,
    level: i32,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Encoder> {
        let level = 1;
        Ok(Encoder { zstd: zstd::bulk::Compressor::new(level)?, level })
    }

    /// Stores `raw` by `method` at the beginning of `out`, which must have [`room_for`] it, and returns how, and in how
    /// many bytes. A chunk that does not get smaller by a thirty-second part is stored as it is: it is restored faster.
    pub(super) fn encode(&mut self, method: Method, raw: &[u8], out: &mut [u8]) -> io::Result<(Codec, usize)> {
        let compressed = match method {
            Method::Store => None,
            Method::Zstd(level) => {
                if level != self.level {
                    self.zstd.set_compression_level(level)?;
                    self.level = level;
                }
                Some((Codec::Zstd, self.zstd.compress_to_buffer(raw, out)?))
            }
        };
        match compressed {
            Some((codec, len)) if len <= raw.len() - raw.len() / 32 => Ok((codec, len)),
            _ => {
                out[..raw.len()].copy_from_slice(raw);
                Ok((Codec::Store, raw.len()))
            }
        }
    }
}

/// Decompresses.
pub(super) struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub(super) fn new() -> io::Result<Decoder> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new()? })
    }

    /// Decodes `stored` into exactly the bytes of `raw`.
    ///
    /// # Errors
    /// What is wrong with `stored`. `raw` holds anything then.
    pub(super) fn decode(&mut self, codec: Codec, stored: &[u8], raw: &mut [u8]) -> Result<(), String> {
        let len = match codec {
            Codec::Store => {
                if stored.len() == raw.len() {
                    raw.copy_from_slice(stored);
                }
                stored.len()
            }
            Codec::Zstd => {
                self.zstd.decompress_to_buffer(stored, raw).map_err(|error| format!("zstd says: {error}"))?
            }
        };
        if len == raw.len() { Ok(()) } else { Err(format!("it has {len} bytes of {}", raw.len())) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn random(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let words = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        words.flatten().take(len).collect()
    }

    #[test]
    fn every_method_gives_back_what_it_took() {
        let text: Vec<u8> = (0..65_536_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let mut encoder = Encoder::new().unwrap();
        for (raw, shrinks) in [(text, true), (random(262_144), false)] {
            for method in [Method::Store, Method::Zstd(-5), Method::Zstd(1), Method::Zstd(3)] {
                let mut out = vec![0; room_for(raw.len())];
                let (codec, len) = encoder.encode(method, &raw, &mut out).unwrap();
                assert_eq!(codec == Codec::Store, method == Method::Store || !shrinks, "{method:?}");
                let mut back = vec![0; raw.len()];
                Decoder::new().unwrap().decode(codec, &out[..len], &mut back).unwrap();
                assert!(back == raw, "{method:?}");
            }
        }
    }

    #[test]
    fn rejects_chunks_that_are_too_long_too_short_or_cut() {
        let raw: Vec<u8> = (0..4096_u32).flat_map(|number| number.to_le_bytes()).collect();
        for method in [Method::Zstd(-5), Method::Zstd(1)] {
            let mut out = vec![0; room_for(raw.len())];
            let (codec, len) = Encoder::new().unwrap().encode(method, &raw, &mut out).unwrap();
            let mut decoder = Decoder::new().unwrap();
            for (stored, room) in
                [(len, raw.len() - 1), (len, raw.len() + 1), (len - 1, raw.len()), (0, raw.len()), (len / 2, 10)]
            {
                assert!(
                    decoder.decode(codec, &out[..stored], &mut vec![0; room]).is_err(),
                    "{method:?} {stored} {room}"
                );
            }
        }
    }
}
