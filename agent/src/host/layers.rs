//! What files and devices of this machine lie on, layer by layer: for `setup`, which seals what goes around encryption,
//! and for people to read.

use std::path::Path;

use dormouse_linux::block::below::number_of_node;
use dormouse_linux::block::{self, Layer};
use dormouse_linux::mountinfo::{self, Mount};

/// The layers below a path from the top: of a block device, its own; of a file or directory, or where one is to be,
/// those of its filesystem. Empty for what is not on a block device.
#[must_use]
pub fn below(path: &Path) -> Vec<Layer> {
    number(path).map_or_else(Vec::new, |number| block::stack(&number))
}

/// Whether one of these layers encrypts.
#[must_use]
pub fn is_encrypted(layers: &[Layer]) -> bool {
    layers.iter().any(|layer| matches!(layer, Layer::Crypt(_)))
}

/// The layers in a line, from the top.
#[must_use]
pub fn in_words(layers: &[Layer]) -> String {
    let names: Vec<String> = layers.iter().map(ToString::to_string).collect();
    names.join(" on ")
}

fn number(path: &Path) -> Option<String> {
    if let Some(number) = number_of_node(path) {
        return Some(number);
    }
    // What does not exist yet goes to the filesystem of the directory that does.
    let there = path.ancestors().find_map(|ancestor| ancestor.canonicalize().ok())?;
    number_of_mount(&mountinfo::read().ok()?, &there)
}

/// The number of the device under the mount that a path is in. That of a btrfs is not its mount's.
fn number_of_mount(mounts: &[Mount], path: &Path) -> Option<String> {
    // The last of those that are mounted at the same place is the one that is seen.
    let mount = mounts.iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| depth(&mount.point))?;
    if mount.number.starts_with("0:") { number_of_node(&mount.source) } else { Some(mount.number.clone()) }
}

fn depth(path: &Path) -> usize {
    path.components().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_on_the_innermost_mount() {
        let text = "22 1 254:1 / / rw - ext4 /dev/mapper/vg-root rw\n23 22 8:1 / /boot rw - ext4 /dev/sda1 rw\n\
                    24 22 0:30 / /run rw - tmpfs tmpfs rw\n25 22 254:2 / /boot rw - ext4 /dev/mapper/x rw\n";
        let mounts = mountinfo::parse(text.as_bytes());
        let number = |path: &str| number_of_mount(&mounts, Path::new(path));
        assert_eq!(number("/var/lib/dormouse").as_deref(), Some("254:1"));
        // Over one another.
        assert_eq!(number("/boot/efi").as_deref(), Some("254:2"));
        assert_eq!(number("/run/x"), None);
    }

    #[test]
    fn layers_in_words() {
        let layers = [Layer::Lvm("vg-root".into()), Layer::Crypt("cr".into()), Layer::Disk("/dev/sda3".into())];
        assert_eq!(in_words(&layers), "LVM vg-root on dm-crypt cr on /dev/sda3");
        assert!(is_encrypted(&layers) && !is_encrypted(&layers[2..]));
        assert!(below(Path::new("/proc")).is_empty());
    }
}
