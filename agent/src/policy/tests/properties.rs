//! Any policy survives the way through the initramfs, and no text is fatal.

use dormouse_image::{ImageDevice, Uuid};
use proptest::prelude::*;

use super::*;
use crate::policy::schema::KEYS;
use crate::policy::tests::shipped::SHIPPED;

fn device() -> impl Strategy<Value = ImageDevice> {
    prop_oneof![
        any::<[u8; 16]>().prop_map(|bytes| ImageDevice::ImageUuid(Uuid(bytes))),
        (any::<[u8; 16]>(), 1_u64..1 << 52)
            .prop_map(|(bytes, blocks)| ImageDevice::ImageAt { uuid: Uuid(bytes), offset: blocks * 4096 }),
        "/(etc|var)/[a-z0-9/ =-]{0,20}[a-z]".prop_map(|path| ImageDevice::File(PathBuf::from(path))),
        "[0-9a-f]{8}-[0-9a-f]{2}".prop_map(ImageDevice::PartUuid),
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}".prop_map(ImageDevice::PartUuid),
        "[^\"\\pC]{1,36}".prop_map(ImageDevice::PartLabel),
        "/dev/[^\"\\pC]{0,20}[^\"\\pC/]".prop_map(|path| ImageDevice::Path(PathBuf::from(path))),
    ]
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let image =
        (device(), 0..=MAX_WAIT).prop_map(|(device, wait)| ImagePolicy { device, wait: Duration::from_secs(wait) });
    let address = 8..=(MAX_PHYSICAL - MAX_REGION_SIZE) / REGION_ALIGNMENT;
    let region = (32_u64..=2048, prop::option::of(address)).prop_map(|(size, address)| RegionPolicy {
        size: size * REGION_ALIGNMENT,
        address: address.map(|address| address * REGION_ALIGNMENT),
    });
    let path = || "/[^\\pC]{0,30}".prop_map(PathBuf::from);
    let arguments = "([a-zé\\\\'=.]{1,9}=\"[^\"\\pC]{0,9}\" ?){0,3}";
    let kernel = (path(), path(), arguments).prop_map(|(image, initramfs, arguments)| KernelPolicy {
        image,
        initramfs,
        arguments,
    });
    let level = prop_oneof![-7..=-1, 1..=19].prop_map(|level| Compression::Zstd { level });
    let compression = prop_oneof![Just(Compression::Auto), Just(Compression::Store), level];
    let ends = (prop::sample::select(Verify::ALL.to_vec()), prop::sample::select(Then::ALL.to_vec()));
    let save = (compression, 0..=MAX_THREADS, MIN_MEMORY..=MAX_MEMORY, any::<[bool; 3]>(), ends).prop_map(
        |(compression, threads, memory, [drop_caches, skip_free, escape], (verify, then))| SavePolicy {
            compression,
            threads,
            memory,
            drop_caches,
            skip_free,
            verify,
            escape,
            then,
        },
    );
    let console = prop::sample::select(Verbosity::ALL.to_vec()).prop_map(|verbosity| ConsolePolicy { verbosity });
    let resume = (any::<bool>(), prop::sample::select(Unfit::ALL.to_vec()))
        .prop_map(|(enabled, mismatch)| ResumePolicy { enabled, mismatch });
    let stall = prop::option::of((MIN_STALL..=MAX_STALL).prop_map(Duration::from_secs));
    let guard = (stall, any::<bool>()).prop_map(|(stall, watchdog)| GuardPolicy { stall, watchdog });
    (image, region, kernel, save, (resume, guard), console).prop_map(
        |(image, region, kernel, save, (resume, guard), console)| Policy {
            image,
            region,
            kernel,
            save,
            resume,
            guard,
            console,
        },
    )
}

proptest! {
    #[test]
    fn the_merged_policy_is_the_same_policy(policy in any_policy()) {
        let text = policy.to_toml();
        prop_assert_eq!(parse(&text).map_err(|error| format!("{error}\n{text}")), Ok(policy));
    }

    /// However the keys of a policy are spread over files, and whatever else earlier files say of them.
    #[test]
    fn the_last_file_that_has_a_key_counts(
        policy in any_policy(),
        other in any_policy(),
        choices in prop::collection::vec(0_usize..3, KEYS.len()),
    ) {
        let pieces = |policy: &Policy| -> toml::Table { policy.to_toml().parse().unwrap() };
        let mut files = [pieces(&other), toml::Table::new(), toml::Table::new()];
        for (key, choice) in KEYS.into_iter().zip(choices) {
            let (section, name) = key.split_once('.').unwrap();
            let value = pieces(&policy)[section].get(name).cloned();
            let value_of = |file: &mut toml::Table| {
                let section = file.entry(section).or_insert_with(|| toml::Table::new().into());
                let section = section.as_table_mut().unwrap();
                match &value {
                    Some(value) => section.insert(name.to_owned(), value.clone()),
                    None => section.remove(name),
                };
            };
            // A key that the policy leaves to its default is nowhere.
            if value.is_some() { value_of(&mut files[choice]) } else { value_of(&mut files[0]) }
        }
        let texts = files.map(|file| file.to_string());
        let named: Vec<(&str, &str)> = ["a", "b", "c"].into_iter().zip(texts.iter().map(String::as_str)).collect();
        prop_assert_eq!(merge(&named).map_err(|error| format!("{error}\n{texts:?}")), Ok(policy));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = parse(&text);
    }

    #[test]
    fn no_damage_makes_the_parser_panic(position in 0_usize..SHIPPED.len(), byte in 0_u8..128) {
        let mut bytes = SHIPPED.as_bytes().to_vec();
        bytes[position] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            let _ = parse(&text);
        }
    }
}
