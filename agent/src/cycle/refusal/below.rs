//! What keeps an image from lying below the layers of a volume.

use dormouse_image::{Layer, LayerKind};
use dormouse_linux::block::layers::NoPlace;
use thiserror::Error;

use crate::cycle::refusal::Refusal;

const ELSEWHERE: &str =
    "put the image on plain (linear) volumes, LUKS, RAID 1 of two partitions, or a partition of its own";

impl Refusal for NoPlace {
    fn id(&self) -> &'static str {
        match self {
            NoPlace::Hardware(error) => error.id(),
            _ => "image-layers",
        }
    }

    fn remedy(&self) -> Option<String> {
        let remedy = match self {
            NoPlace::Hardware(error) => return error.remedy(),
            NoPlace::State { remedy, .. } => remedy,
            NoPlace::Target { kind, .. } => match kind.as_str() {
                "mirror" => {
                    "it is being moved (`pvmove`) or mirrored by LVM: wait until that has finished, and make the image \
                     again"
                }
                "snapshot" | "snapshot-origin" | "snapshot-merge" => {
                    "remove the snapshot (`lvremove`), or put the image on a volume that has none"
                }
                "cache" | "writecache" => "take the cache away (`lvconvert --uncache`), or put the image elsewhere",
                _ => ELSEWHERE,
            },
            _ => ELSEWHERE,
        };
        Some(remedy.to_owned())
    }
}

/// An image below a layer that encrypts would be in clear on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the image lies below {layers}, so that all memory would be on the disk without encryption: it must be sealed")]
pub struct Unsealed {
    /// The layers that encrypt.
    layers: String,
}

impl Unsealed {
    /// What is in the way with an image below these layers, unless it is going to be sealed.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn refuse(layers: &[Layer], is_sealed: bool) -> Result<(), Unsealed> {
        let encrypting = layers.iter().filter(|layer| layer.kind == LayerKind::Crypt).map(Layer::to_string);
        match encrypting.collect::<Vec<_>>() {
            encrypting if is_sealed || encrypting.is_empty() => Ok(()),
            encrypting => Err(Unsealed { layers: encrypting.join(", ") }),
        }
    }

    /// One for tests of texts.
    #[cfg(test)]
    pub(crate) fn sample() -> Unsealed {
        Unsealed { layers: "crypt CRYPT-LUKS2-0".to_owned() }
    }
}

impl Refusal for Unsealed {
    fn id(&self) -> &'static str {
        "sealing-needed"
    }

    fn remedy(&self) -> Option<String> {
        Some("give it a key, or put the image on a partition that no layer encrypts".to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_image_below_encryption_must_be_sealed() {
        let layer = |kind, identity: &str| Layer { kind, identity: identity.to_owned() };
        let plain = [layer(LayerKind::Filesystem, "ext4"), layer(LayerKind::Linear, "LVM-a")];
        assert_eq!(Unsealed::refuse(&plain, false), Ok(()));
        let below = [layer(LayerKind::Filesystem, "ext4"), layer(LayerKind::Crypt, "CRYPT-LUKS2-b")];
        assert_eq!(Unsealed::refuse(&below, true), Ok(()));
        let error = Unsealed::refuse(&below, false).unwrap_err();
        assert_eq!(error.id(), "sealing-needed");
        assert!(error.to_string().contains("below crypt CRYPT-LUKS2-b"), "{error}");
    }

    #[test]
    fn layers_that_pass_are_waited_for() {
        let of = |kind: &str| NoPlace::Target { node: "/dev/mapper/x".into(), kind: kind.to_owned() }.remedy().unwrap();
        assert!(of("mirror").contains("pvmove") && of("snapshot-origin").contains("lvremove"));
        assert!(of("thin").contains("linear") && of("writecache").contains("--uncache"));
    }
}
