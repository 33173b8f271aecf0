//! The network interface by which a server is reached, as a value: the same in every kernel. Pure; [`crate::network`]
//! finds it out.

use core::net::IpAddr;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

const MAC: &str = "mac=";
const PLACE: &str = "place=";
const ADDRESS: &str = "address=";
const GATEWAY: &str = "gateway=";
const MTU: &str = "mtu=";

/// An interface and how it reaches a server. Written as words:
/// `mac=52:54:00:12:34:56 place=pci0000:00/0000:00:03.0/virtio address=10.0.2.15 gateway=10.0.2.2 mtu=1500`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its hardware address.
    pub mac: Mac,
    /// The way to it from the root of its bus, without what a kernel counts as it finds it.
    pub place: String,
    /// The machine's own address there.
    pub address: IpAddr,
    /// The router on the way to the server, where the server is not on the interface's own network.
    pub gateway: Option<IpAddr>,
    /// The longest packet, in bytes.
    pub mtu: u32,
}

/// The hardware address of an Ethernet interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

/// A text that is no link, or no hardware address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{0}` is not an interface: mac=, place=, address=, gateway= where there is one, and mtu=")]
pub struct NoLink(String);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = NoLink;

    fn from_str(text: &str) -> Result<Mac, NoLink> {
        let byte = |part: &str| u8::from_str_radix(part, 16).ok().filter(|_| part.len() == 2);
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Mac).ok_or_else(|| NoLink(text.to_owned()))
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Link { mac, place, address, gateway, mtu } = self;
        write!(f, "{MAC}{mac} {PLACE}{place} {ADDRESS}{address} ")?;
        if let Some(gateway) = gateway {
            write!(f, "{GATEWAY}{gateway} ")?;
        }
        write!(f, "{MTU}{mtu}")
    }
}

impl FromStr for Link {
    type Err = NoLink;

    fn from_str(text: &str) -> Result<Link, NoLink> {
        let parsed = || {
            let mut words = text.split(' ').peekable();
            let link = Link {
                mac: words.next()?.strip_prefix(MAC)?.parse().ok()?,
                place: words.next()?.strip_prefix(PLACE).filter(|place| !place.is_empty())?.to_owned(),
                address: words.next()?.strip_prefix(ADDRESS)?.parse().ok()?,
                gateway: match words.peek()?.strip_prefix(GATEWAY) {
                    Some(gateway) => {
                        words.next();
                        Some(gateway.parse().ok()?)
                    }
                    None => None,
                },
                mtu: words.next()?.strip_prefix(MTU)?.parse().ok()?,
            };
            words.next().is_none().then_some(link)
        };
        parsed().ok_or_else(|| NoLink(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_link_is_written_as_words() {
        let direct = "mac=52:54:00:12:34:56 place=pci0000:00/0000:00:03.0/virtio address=10.0.2.15 mtu=1500";
        let routed = "mac=02:00:00:00:00:ff place=pci0000:00 address=fd00::1 gateway=fe80::1 mtu=9000";
        for text in [direct, routed] {
            assert_eq!(text.parse::<Link>().unwrap().to_string(), text);
        }
        assert_eq!(routed.parse::<Link>().unwrap().gateway, Some("fe80::1".parse().unwrap()));
        for text in [
            "",
            "mac=52:54:00:12:34 place=a address=10.0.2.15 mtu=1500",
            "mac=52:54:00:12:34:567 place=a address=10.0.2.15 mtu=1500",
            "mac=52:54:00:12:34:56 place= address=10.0.2.15 mtu=1500",
            "mac=52:54:00:12:34:56 place=a address=10.0.2 mtu=1500",
            "mac=52:54:00:12:34:56 place=a address=10.0.2.15 gateway=x mtu=1500",
            "mac=52:54:00:12:34:56 place=a address=10.0.2.15 mtu=-1",
            &format!("{direct} more"),
            &direct.replace(" mtu=1500", ""),
        ] {
            assert!(text.parse::<Link>().is_err(), "{text}");
        }
    }
}
