//! What of the machine must come back with the session: clocks, the power button, network links, swap.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::report::{Mapping, Proof, Verdict, changed};

/// How far the RTC, which counts whole seconds, may be from the system's clock.
const CLOCKS_AGREE: u64 = 5;

/// What the kernel reports of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hardware {
    /// The clock source that is in use.
    pub clock_source: String,
    /// The RTC, where there is one.
    pub rtc: Option<Rtc>,
    /// Whether the power button's ACPI event is enabled, in the kernel's word, where there is such an event.
    pub power_button: Option<String>,
    /// The links of network devices.
    pub links: Vec<Link>,
    /// The machine's own IPv4 addresses.
    pub addresses: Vec<String>,
    /// The swap areas that are in use.
    pub swaps: Vec<Swap>,
}

/// Two clocks at one moment, in seconds since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rtc {
    /// The RTC.
    pub seconds: u64,
    /// The system's clock.
    pub system: u64,
}

/// A network link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its hardware address.
    pub address: String,
    /// Whether there is a carrier; nothing where the link is down.
    pub carrier: Option<bool>,
}

/// A swap area.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swap {
    /// The device or file.
    pub name: String,
    /// Its size in KiB.
    pub kib: u64,
    /// What of it is in use, in KiB.
    pub used_kib: u64,
}

impl Hardware {
    /// Reads all of it. What cannot be read is missing.
    #[must_use]
    pub fn read() -> Self {
        Hardware {
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource").unwrap_or_default(),
            rtc: rtc(),
            power_button: text("/sys/firmware/acpi/interrupts/ff_pwr_btn").map(|text| button_state(&text)),
            links: links(Path::new("/sys/class/net")),
            addresses: text("/proc/net/fib_trie").map(|text| local_addresses(&text)).unwrap_or_default(),
            swaps: text("/proc/swaps").map(|text| swaps(&text)).unwrap_or_default(),
        }
    }

    /// What this proves with what was read earlier. A machine without a part has no proof of it.
    #[must_use]
    pub fn proofs_since(&self, before: &Hardware) -> Vec<Verdict> {
        let mut proofs = vec![Verdict {
            claim: "the clock source is the same",
            holds: self.clock_source == before.clock_source,
            detail: changed(&before.clock_source, &self.clock_source),
        }];
        if let Some(before) = before.rtc {
            let now = self.rtc.unwrap_or_default();
            proofs.push(Verdict {
                claim: "the RTC goes on and agrees with the system's clock",
                holds: now.seconds > before.seconds && now.seconds.abs_diff(now.system) <= CLOCKS_AGREE,
                detail: format!(
                    "{} s before, {} after, the system's clock {}",
                    before.seconds, now.seconds, now.system
                ),
            });
        }
        if let Some(before) = &before.power_button {
            let now = self.power_button.as_deref().unwrap_or("missing");
            proofs.push(Verdict {
                claim: "the power button's event is as it was",
                holds: now == before,
                detail: changed(before, now),
            });
        }
        if !before.links.is_empty() {
            proofs.push(Verdict {
                claim: "the network links are as they were",
                holds: self.links == before.links && self.addresses == before.addresses,
                detail: changed(&before.network(), &self.network()),
            });
        }
        proofs
    }

    fn network(&self) -> String {
        let link = |link: &Link| {
            let carrier = match link.carrier {
                Some(true) => "has a carrier",
                Some(false) => "has no carrier",
                None => "is down",
            };
            format!("{} {} {carrier}", link.name, link.address)
        };
        let links: Vec<String> = self.links.iter().map(link).collect();
        format!("{}; {}", links.join(", "), self.addresses.join(" "))
    }
}

/// What two reports prove of swap, if any was in use: the areas are, and what lay in them is in the mapping again.
#[must_use]
pub fn swap_proof(before: &Hardware, after: &Hardware, mapping: &Proof<Mapping>) -> Option<Verdict> {
    let areas = |hardware: &Hardware| -> Vec<(String, u64)> {
        hardware.swaps.iter().map(|swap| (swap.name.clone(), swap.kib)).collect()
    };
    let used: Vec<String> = after.swaps.iter().map(|swap| format!("{}: {} KiB", swap.name, swap.used_kib)).collect();
    (!before.swaps.is_empty()).then(|| Verdict {
        claim: "what was swapped out came back",
        holds: areas(before) == areas(after) && mapping.fault.is_none() && mapping.evidence.swapped > 0,
        detail: format!("{} bytes of the mapping were in swap; in use: {}", mapping.evidence.swapped, used.join(", ")),
    })
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn rtc() -> Option<Rtc> {
    let seconds = text("/sys/class/rtc/rtc0/since_epoch")?.parse().ok()?;
    let system = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    Some(Rtc { seconds, system })
}

/// The word for its state in a file of `/sys/firmware/acpi/interrupts` (drivers/acpi/sysfs.c, `counter_show`).
fn button_state(text: &str) -> String {
    let state = text.split_whitespace().find(|word| matches!(*word, "enabled" | "disabled" | "invalid"));
    state.unwrap_or("unknown").to_owned()
}

fn links(directory: &Path) -> Vec<Link> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.filter(|entry| entry.path().join("device").exists());
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut links: Vec<Link> = names
        .map(|name| {
            let read = |file: &str| fs::read_to_string(directory.join(&name).join(file)).ok();
            let address = read("address").map(|text| text.trim().to_owned()).unwrap_or_default();
            let carrier = read("carrier").map(|text| text.trim() == "1");
            Link { name, address, carrier }
        })
        .collect();
    links.sort_by(|a, b| a.name.cmp(&b.name));
    links
}

/// The addresses in `/proc/net/fib_trie` that are this machine's, less the loopback's.
fn local_addresses(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let local = lines.windows(2).filter(|pair| pair[1].starts_with("/32 host LOCAL"));
    let mut addresses: Vec<String> = local
        .filter_map(|pair| pair[0].strip_prefix("|-- "))
        .filter(|a| !a.starts_with("127."))
        .map(str::to_owned)
        .collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

fn swaps(text: &str) -> Vec<Swap> {
    let areas = text.lines().skip(1).filter_map(|line| {
        let mut words = line.split_whitespace();
        let (name, _kind) = (words.next()?.to_owned(), words.next()?);
        Some(Swap { name, kib: words.next()?.parse().ok()?, used_kib: words.next()?.parse().ok()? })
    });
    areas.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_kernels_files() {
        assert_eq!(button_state("       0  EN     enabled      unmasked"), "enabled");
        assert_eq!(button_state("       3     STS disabled      unmasked"), "disabled");
        assert_eq!(button_state("?"), "unknown");
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.2.15\n        /32 host LOCAL\n     \
                    |-- 10.0.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
                    Local:\n     |-- 10.0.2.15\n        /32 host LOCAL\n";
        assert_eq!(local_addresses(trie), ["10.0.2.15"]);
        let text = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/vdb partition\t65532\t\t16384\t\t-2\n";
        assert_eq!(swaps(text), [Swap { name: "/dev/vdb".to_owned(), kib: 65532, used_kib: 16384 }]);
    }

    fn machine(seconds: u64) -> Hardware {
        Hardware {
            clock_source: "tsc".to_owned(),
            rtc: Some(Rtc { seconds, system: seconds + 1 }),
            power_button: Some("enabled".to_owned()),
            links: vec![Link { name: "eth0".to_owned(), address: "a".to_owned(), carrier: Some(true) }],
            addresses: vec!["10.0.2.15".to_owned()],
            swaps: vec![Swap { name: "/dev/vdb".to_owned(), kib: 100, used_kib: 50 }],
        }
    }

    fn broken(change: impl Fn(&mut Hardware)) -> Vec<&'static str> {
        let mut after = machine(200);
        change(&mut after);
        after.proofs_since(&machine(100)).into_iter().filter(|verdict| !verdict.holds).map(|v| v.claim).collect()
    }

    #[test]
    fn each_loss_breaks_its_own_claim() {
        assert!(broken(|_| ()).is_empty());
        assert_eq!(broken(|after| after.clock_source = "hpet".to_owned()), ["the clock source is the same"]);
        let rtc = "the RTC goes on and agrees with the system's clock";
        assert_eq!(broken(|after| after.rtc = None), [rtc]);
        assert_eq!(broken(|after| after.rtc = Some(Rtc { seconds: 100, system: 100 })), [rtc]);
        assert_eq!(broken(|after| after.rtc = Some(Rtc { seconds: 200, system: 3800 })), [rtc]);
        let button = "the power button's event is as it was";
        assert_eq!(broken(|after| after.power_button = Some("disabled".to_owned())), [button]);
        let network = "the network links are as they were";
        assert_eq!(broken(|after| after.links[0].carrier = Some(false)), [network]);
        assert_eq!(broken(|after| after.links.clear()), [network]);
        assert_eq!(broken(|after| after.addresses.clear()), [network]);
    }

    #[test]
    fn swap_must_be_in_use_and_hold_something() {
        let mapping = |swapped| Proof { evidence: Mapping { bytes: 9, address: 1, swapped }, ..Proof::default() };
        let holds = |after: &Hardware, swapped| swap_proof(&machine(1), after, &mapping(swapped)).unwrap().holds;
        assert!(holds(&machine(2), 4096));
        assert!(!holds(&machine(2), 0));
        assert!(!holds(&Hardware { swaps: Vec::new(), ..machine(2) }, 4096));
        let lost = Proof { fault: Some("word 1".to_owned()), ..mapping(4096) };
        assert!(!swap_proof(&machine(1), &machine(2), &lost).unwrap().holds);
        assert!(swap_proof(&Hardware::default(), &machine(2), &mapping(0)).is_none());
    }

    #[test]
    fn a_machine_without_a_part_has_no_proof_of_it() {
        let bare = Hardware { clock_source: "tsc".to_owned(), ..Hardware::default() };
        assert_eq!(bare.proofs_since(&bare).len(), 1);
    }
}
