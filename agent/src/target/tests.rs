#![allow(clippy::unwrap_used)]

use dormouse_image::State;
use tempfile::NamedTempFile;

use super::*;

/// A file with an image that believes to have a device for itself.
fn image_in(directory: &Path) -> NamedTempFile {
    let file = tempfile::Builder::new().tempfile_in(directory).unwrap();
    file.as_file().set_len(4 << 20).unwrap();
    device::init(file.path(), false).unwrap();
    file
}

fn name(path: &Path) -> ImageDevice {
    path.display().to_string().parse().unwrap()
}

fn opened(name: &ImageDevice, if_file: IfFile) -> Result<Opened, TargetError> {
    open(name, Opening { access: Access::Write, wait: Duration::ZERO, if_file })
}

/// Whether a policy's text has it below /dev or elsewhere: what is demanded of a file is the same.
#[test]
fn a_file_is_a_file_wherever_it_is() {
    for directory in ["/dev/shm", "/tmp"] {
        let file = image_in(Path::new(directory));
        let name = name(file.path());
        let target = resolve(&name).unwrap().unwrap();
        assert_eq!(target.kind, Kind::File);
        // As `dormouse hibernate` opens it, as doctor looks at it, and as it is written into an initramfs.
        let error = opened(&name, IfFile::Check).unwrap_err().to_string();
        assert!(error.contains("`dormouse image init`, which is for devices"), "{error}");
        let image = target.open(Access::Read).unwrap();
        assert_eq!(target.check(&image).unwrap_err().to_string(), error);
        assert_eq!(boot_name(&name).unwrap_err().to_string(), error);
        // As `dormouse resume` opens it.
        assert!(matches!(opened(&name, IfFile::Refuse), Err(TargetError::Mounted { path }) if path == file.path()));
        assert_eq!(opened(&name, IfFile::Trust).unwrap().target, target);
        assert_eq!(target.policy_name().unwrap(), name);
        let again = format!("remove the file, then `dormouse setup --file {}`", file.path().display());
        assert_eq!(target.how_to_make_again(), again);
    }
}

#[test]
fn a_device_does_not_move() {
    // A file stands for it.
    let file = image_in(Path::new("/tmp"));
    let target = Target::device(file.path().to_str().unwrap());
    let mut image = target.open(Access::Write).unwrap();
    target.check(&image).unwrap();
    image.transition(State::Saving, "").unwrap();
    target.confirm(&image).unwrap();
    assert_eq!(target.policy_name().unwrap(), image.name());
    assert_eq!(target.to_string(), file.path().display().to_string());
}

#[test]
fn a_file_on_a_device_is_opened_by_its_map() {
    let device = tempfile::NamedTempFile::new().unwrap();
    device.as_file().set_len(16 << 20).unwrap();
    let extents = [(8 << 20, 1 << 20), (4 << 20, 3 << 20)].map(|(offset, len)| DiskExtent { offset, len });
    let label = new_label(extents.to_vec()).unwrap();
    Disk::open(device.path(), Access::Write).unwrap().write_copy(8 << 20, &label.encode().unwrap()).unwrap();
    let target = Target::on_device(device.path().to_owned(), 8 << 20);
    Image::create(target.blocks(Access::Write).unwrap(), label.clone()).unwrap();
    let image = target.open(Access::Read).unwrap();
    assert_eq!((image.label(), image.disk().size()), (&label, 4 << 20));
    assert_eq!(target.to_string(), format!("{} (from byte 8388608 on)", device.path().display()));
    assert_eq!(image.disk().name(), target.to_string());
    assert_eq!(target.policy_name().unwrap().to_string(), format!("UUID={}@8388608", label.uuid));
    target.check(&image).unwrap();
    target.confirm(&image).unwrap();
}

#[test]
fn names_without_a_target_have_a_remedy() {
    let [file, device, label] =
        ["/var/no/such/image", "/dev/no-such-device", "PARTLABEL=no such label"].map(|text| text.parse().unwrap());
    assert!(matches!(opened(&file, IfFile::Check), Err(TargetError::NoFile { .. })));
    assert!(matches!(boot_name(&file), Err(TargetError::NoFile { .. })));
    assert_eq!(how_to_get(&file), "dormouse setup --file /var/no/such/image");
    for name in [device, label] {
        assert!(matches!(opened(&name, IfFile::Check), Err(TargetError::NotFound { seconds: 0, .. })));
        assert_eq!(how_to_get(&name), format!("attach {name}, or name another with `dormouse setup`"));
    }
    let error = format!("{:#}", Target::at(Path::new("/dev/null")).unwrap_err());
    assert!(error.ends_with("it is neither a block device nor a file"), "{error}");
}

#[test]
fn stable_names_stay_in_an_initramfs() {
    for name in ["PARTLABEL=x", "UUID=00112233-4455-6677-8899-aabbccddeeff", "/dev/no-such-device"] {
        let name = name.parse().unwrap();
        assert_eq!(boot_name(&name).unwrap(), name);
    }
    assert!(is_renamed(&name(Path::new("/dev/vda"))) && !is_renamed(&"PARTLABEL=x".parse().unwrap()));
}

#[test]
fn commands_return_values() {
    let file = image_in(Path::new("/tmp"));
    let discarded = device::discard(file.path()).unwrap();
    assert_eq!((discarded.was.as_str(), discarded.is_changed), ("empty", false));
    let mut image = Target::at(file.path()).unwrap().open(Access::Write).unwrap();
    image.transition(State::Saving, "").unwrap();
    let discarded = device::discard(file.path()).unwrap();
    assert!(discarded.is_changed && discarded.to_string().ends_with("discarded; the next boot is an ordinary one"));
    let json = serde_json::to_value(&discarded).unwrap();
    assert_eq!(json["device"], file.path().display().to_string());
    assert!(device::verify(file.path(), &|_| Ok(None)).is_err());
}
