//! The network interface by which a server is reached: found out in one kernel, found again and brought up in another.
//!
//! The other kernel takes this one's address while this one stands still, and has routes to the server and to the
//! router on the way to it alone: it answers nobody else, so that the connections of the kernel that stands still
//! outlive it. With a route to a whole network it would refuse what their other ends send.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dormouse_sys::network::Interface;
use thiserror::Error;

use crate::block::place_of;
use crate::link::{Link, Mac};
use crate::procfs;
use crate::wait::wait_for;

const CLASS: &str = "/sys/class/net";
const ROUTES: &str = "/proc/net/route";
const ROUTES6: &str = "/proc/net/ipv6_route";
/// `ARPHRD_ETHER`, include/uapi/linux/if_arp.h.
const ETHERNET: &str = "1";
/// `RTF_UP` and `RTF_GATEWAY`, include/uapi/linux/route.h.
const UP: u32 = 1;
const GATEWAY: u32 = 2;

/// Why a server is not reached by an interface that another kernel has too.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NoWay {
    /// It cannot be reached at all.
    #[error("there is no way to the server {server}")]
    NoRoute {
        /// The server's address.
        server: IpAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The server is this machine.
    #[error("the server {0} is this machine itself, which stands still while it is saved")]
    Itself(IpAddr),
    /// The interface is not hardware of a kind that another kernel brings up alone.
    #[error("the server {server} is reached by {interface}, which is {what}: the save kernel does not have it")]
    Virtual {
        /// The server's address.
        server: IpAddr,
        /// The interface's name.
        interface: String,
        /// What it is.
        what: &'static str,
    },
    /// What the kernel says of it is not understood.
    #[error("the way to the server {server}: {what}")]
    Unknown {
        /// The server's address.
        server: IpAddr,
        /// What is missing.
        what: String,
    },
}

/// A link that did not come up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Down {
    /// Its interface did not turn up.
    #[error("no network interface with the address {mac} at {place} within {seconds} s")]
    NotFound {
        /// Its hardware address.
        mac: Mac,
        /// Its place.
        place: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It has no carrier.
    #[error("{interface}: no carrier within {seconds} s: is its cable plugged in?")]
    NoCarrier {
        /// Its name in this kernel.
        interface: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// It cannot be set up.
    #[error("{interface}: {what}")]
    Refused {
        /// Its name in this kernel.
        interface: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// The address of this machine that what it sends to a server comes from.
///
/// # Errors
/// There is no route to the server.
pub fn own_address_towards(server: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    // The kernel chooses a route, and nothing is sent.
    socket.connect(server)?;
    Ok(socket.local_addr()?.ip())
}

impl Link {
    /// The way on which this kernel reaches a server.
    ///
    /// # Errors
    /// [`NoWay`].
    pub fn towards(server: SocketAddr) -> Result<Link, NoWay> {
        let server_ip = server.ip();
        let unknown = |what: &str| NoWay::Unknown { server: server_ip, what: what.to_owned() };
        let address = own_address_towards(server).map_err(|source| NoWay::NoRoute { server: server_ip, source })?;
        if address == server_ip || server_ip.is_loopback() {
            return Err(NoWay::Itself(server_ip));
        }
        let text = |path| procfs::text(path).map_err(|error| unknown(&format!("{error:#}")));
        let route = match server_ip {
            IpAddr::V4(ip) => route_v4(&text(ROUTES)?, ip),
            IpAddr::V6(ip) => route_v6(&text(ROUTES6)?, ip),
        };
        let Route { interface, gateway } = route.ok_or_else(|| unknown("the kernel lists no route to it"))?;
        let directory = Path::new(CLASS).join(&interface);
        if let Some(what) = virtual_kind(&directory, Path::new("/proc/net/vlan")) {
            return Err(NoWay::Virtual { server: server_ip, interface, what });
        }
        let read =
            |name: &str| attribute(&directory, name).ok_or_else(|| unknown(&format!("{interface} has no {name}")));
        let mac = read("address")?.parse().map_err(|_| unknown("its interface has no address of Ethernet"))?;
        let mtu = read("mtu")?.parse().map_err(|_| unknown("its interface has no length of packets"))?;
        let place = place(&directory).ok_or_else(|| unknown("its interface is at no place"))?;
        Ok(Link { mac, place, address, gateway, mtu })
    }

    /// The directories in sysfs on the way to its interface, its own first.
    #[must_use]
    pub fn ways(&self) -> Vec<PathBuf> {
        let Some(directory) = self.find() else { return Vec::new() };
        let real = directory.join("device").canonicalize().unwrap_or_default();
        let is_below = |dir: &&Path| dir.file_name().is_some_and(|name| name != "devices");
        real.ancestors().take_while(is_below).map(Path::to_owned).collect()
    }

    /// Its interface's directory: what is at its place, and of several ports there the one with its address. A kernel
    /// that stands still may have given it another address than its own.
    fn find(&self) -> Option<PathBuf> {
        let mut there = hardware_interfaces();
        there.retain(|directory| place(directory).as_ref() == Some(&self.place));
        let own = there.iter().position(|directory| mac_of(directory) == Some(self.mac));
        match (own, there.len()) {
            (Some(own), _) => Some(there.swap_remove(own)),
            (None, 1) => there.pop(),
            (None, _) => None,
        }
    }

    /// Brings it up for connections to one server, in a kernel that has no network; `wait` is for the interface, and
    /// again for its carrier. `alive` is called meanwhile.
    ///
    /// # Errors
    /// [`Down`]; it is as it was before then.
    pub fn bring_up(&self, server: IpAddr, wait: Duration, alive: &dyn Fn()) -> Result<Up, Down> {
        let directory = wait_for(wait, || {
            alive();
            self.find()
        });
        let not_found = || Down::NotFound { mac: self.mac, place: self.place.clone(), seconds: wait.as_secs() };
        let directory = directory.ok_or_else(not_found)?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let interface = Interface::named(&name).map_err(refused(&name, "it cannot be set up"))?;
        let index = attribute(&directory, "ifindex").and_then(|index| index.parse().ok()).unwrap_or(0);
        let other_mac = mac_of(&directory).filter(|mac| *mac != self.mac);
        let up = Up { name, interface, index, address: self.address, other_mac };
        match self.set_up(&up, &directory, server, wait, alive) {
            Ok(()) => Ok(up),
            Err(error) => {
                up.take_down();
                Err(error)
            }
        }
    }

    fn set_up(&self, up: &Up, directory: &Path, server: IpAddr, wait: Duration, alive: &dyn Fn()) -> Result<(), Down> {
        let Up { name, interface, index, .. } = up;
        if self.address.is_ipv6() {
            // Nobody else has the address, and what routers announce is not wanted.
            for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("autoconf", "0")] {
                let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join(setting);
                if let Err(error) = fs::write(&path, value) {
                    log::debug!("{}: {error}", path.display());
                }
            }
        }
        if up.other_mac.is_some() {
            interface.set_mac(self.mac.0).map_err(refused(name, "it does not take its hardware address"))?;
        }
        if let Err(error) = interface.set_mtu(self.mtu) {
            log::warn!("{name}: packets of {} bytes: {error}; they stay as they are", self.mtu);
        }
        interface.set_address(self.address, *index).map_err(refused(name, "it does not take its address"))?;
        interface.set_up(true).map_err(refused(name, "it does not come up"))?;
        if let Some(gateway) = self.gateway {
            interface.add_route(gateway, None, *index).map_err(refused(name, "no route to its router"))?;
        }
        interface.add_route(server, self.gateway, *index).map_err(refused(name, "no route to the server"))?;
        let has_carrier = wait_for(wait, || {
            alive();
            (attribute(directory, "carrier").as_deref() == Some("1")).then_some(())
        });
        has_carrier.ok_or_else(|| Down::NoCarrier { interface: name.clone(), seconds: wait.as_secs() })
    }
}

fn refused(interface: &str, what: &'static str) -> impl FnOnce(io::Error) -> Down {
    move |source| Down::Refused { interface: interface.to_owned(), what, source }
}

/// An interface that was brought up.
#[derive(Debug)]
pub struct Up {
    name: String,
    interface: Interface,
    index: u32,
    /// The address that it was given.
    address: IpAddr,
    /// The hardware address that it had, where it was given another.
    other_mac: Option<Mac>,
}

impl Up {
    /// Takes it down again, and what it was given away.
    pub fn take_down(&self) {
        let removed = self.interface.remove_address(self.address, self.index);
        let down = self.interface.set_up(false);
        let own = self.other_mac.map_or(Ok(()), |mac| self.interface.set_mac(mac.0));
        // What it never had cannot be removed.
        let _ = removed;
        if let Err(error) = down.and(own) {
            log::warn!("{}: it cannot be taken down: {error}", self.name);
        }
    }
}

/// Takes every interface down, so that no device writes what it receives to memory that is another kernel's again.
pub fn take_down_all() {
    for directory in hardware_interfaces() {
        let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let down = Interface::named(&name).and_then(|interface| interface.set_up(false));
        if let Err(error) = down {
            log::warn!("{name}: it cannot be taken down: {error}");
        }
    }
}

/// The directories of the interfaces that are devices.
fn hardware_interfaces() -> Vec<PathBuf> {
    let entries = fs::read_dir(CLASS).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.join("device").exists()).collect()
}

fn mac_of(directory: &Path) -> Option<Mac> {
    attribute(directory, "address")?.parse().ok()
}

/// The place of an interface's device.
fn place(directory: &Path) -> Option<String> {
    Some(place_of(&directory.join("device").canonicalize().ok()?)).filter(|place| !place.is_empty())
}

/// What an interface is, if it is not Ethernet of its own.
fn virtual_kind(directory: &Path, vlans: &Path) -> Option<&'static str> {
    let uevent = attribute(directory, "uevent").unwrap_or_default();
    let kind = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).unwrap_or_default();
    let has = |name: &str| directory.join(name).exists();
    let is_vlan = directory.file_name().is_some_and(|name| vlans.join(name).exists());
    Some(match kind {
        "wlan" => "Wi-Fi",
        _ if has("wireless") || has("phy80211") => "Wi-Fi",
        "wwan" => "a modem",
        "bond" => "a bond",
        _ if has("bonding") => "a bond",
        "bridge" => "a bridge",
        _ if has("bridge") => "a bridge",
        "vlan" => "a VLAN",
        _ if is_vlan => "a VLAN",
        "wireguard" => "a VPN",
        _ if has("tun_flags") => "a VPN or a virtual machine's",
        _ if has("master") => "a part of another interface",
        _ if !has("device") => "no hardware of its own",
        _ if attribute(directory, "type").as_deref() != Some(ETHERNET) => "no Ethernet",
        _ => return None,
    })
}

/// A file of sysfs.
fn attribute(directory: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(directory.join(name)).ok()?.trim_end().to_owned())
}

/// The route to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Route {
    interface: String,
    gateway: Option<IpAddr>,
}

/// The best of those that match: the longest mask, then the least metric.
fn best(routes: impl Iterator<Item = (u32, u32, Route)>) -> Option<Route> {
    routes.min_by_key(|(mask, metric, _)| (u32::MAX - mask, *metric)).map(|(.., route)| route)
}

/// From the table as `/proc/net/route` has it (net/ipv4/fib_trie.c, `fib_route_seq_show`): the interface, destination,
/// gateway, flags, two counters, metric and mask; addresses as numbers of the machine's own byte order.
fn route_v4(table: &str, server: Ipv4Addr) -> Option<Route> {
    let server = u32::from_ne_bytes(server.octets());
    best(table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, gateway, flags, _, _, metric, mask, ..] = words[..] else { return None };
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let (destination, gateway, flags, mask) = (hex(destination)?, hex(gateway)?, hex(flags)?, hex(mask)?);
        let is_meant = flags & UP != 0 && server & mask == destination;
        let gateway = Ipv4Addr::from(gateway.to_ne_bytes()).into();
        let route = Route { interface: interface.to_owned(), gateway: (flags & GATEWAY != 0).then_some(gateway) };
        is_meant.then_some((mask.count_ones(), metric.parse().ok()?, route))
    }))
}

/// From the table as `/proc/net/ipv6_route` has it (net/ipv6/route.c, `ipv6_route_native_seq_show`): destination and
/// its length, source and its length, gateway, metric, two counters, flags and interface, numbers in hexadecimal.
fn route_v6(table: &str, server: Ipv6Addr) -> Option<Route> {
    let server = u128::from(server);
    best(table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, len, _, _, gateway, metric, _, _, flags, interface] = words[..] else { return None };
        let hex = |text| u32::from_str_radix(text, 16).ok();
        let wide = |text| u128::from_str_radix(text, 16).ok();
        let (destination, len, flags) = (wide(destination)?, hex(len)?, hex(flags)?);
        let mask = if len == 0 { 0 } else { u128::MAX.checked_shl(128_u32.checked_sub(len)?)? };
        let is_meant = flags & UP != 0 && server & mask == destination && interface != "lo";
        let gateway = Ipv6Addr::from(wide(gateway)?).into();
        let route = Route { interface: interface.to_owned(), gateway: (flags & GATEWAY != 0).then_some(gateway) };
        is_meant.then_some((len, hex(metric)?, route))
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TABLE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0002000A\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth1\t0100090A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0
eth2\t0200090A\t00000000\t0004\t0\t0\t0\tFFFFFFFF\t0\t0\t0
";

    #[test]
    fn the_longest_mask_wins_and_then_the_least_metric() {
        let of = |server: &str| route_v4(TABLE, server.parse().unwrap()).unwrap();
        let route = |interface: &str, gateway: Option<&str>| Route {
            interface: interface.to_owned(),
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        };
        assert_eq!(of("10.0.2.7"), route("eth0", None));
        assert_eq!(of("192.0.2.1"), route("eth0", Some("10.0.2.2")));
        assert_eq!(of("10.9.0.1"), route("eth1", None));
        // One that is down is none.
        assert_eq!(of("10.9.0.2"), route("eth0", Some("10.0.2.2")));
        assert_eq!(route_v4("", "10.0.2.7".parse().unwrap()), None);
    }

    #[test]
    fn routes_of_the_other_protocol() {
        let table = "\
fec00000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 \
00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000002 00000400 \
00000001 00000000 00000003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff \
00000001 00000000 00200200       lo
";
        let near = route_v6(table, "fec0::2".parse().unwrap()).unwrap();
        assert_eq!(near, Route { interface: "eth0".to_owned(), gateway: None });
        let far = route_v6(table, "2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(far.gateway, Some("fe80::2".parse().unwrap()));
    }

    #[test]
    fn only_ethernet_of_its_own_will_do() {
        let root = tempfile::tempdir().unwrap();
        let kind = |name: &str, files: &[(&str, &str)], directories: &[&str]| {
            let directory = root.path().join(name);
            fs::create_dir_all(&directory).unwrap();
            files.iter().for_each(|(file, text)| fs::write(directory.join(file), text).unwrap());
            directories.iter().for_each(|name| fs::create_dir(directory.join(name)).unwrap());
            virtual_kind(&directory, &root.path().join("vlan"))
        };
        fs::create_dir(root.path().join("vlan")).unwrap();
        fs::write(root.path().join("vlan/named"), "").unwrap();
        let ethernet = [("type", "1\n")];
        assert_eq!(kind("eth0", &ethernet, &["device"]), None);
        assert_eq!(kind("named", &ethernet, &[]), Some("a VLAN"));
        assert_eq!(
            kind("wlan0", &[("type", "1\n"), ("uevent", "DEVTYPE=wlan\nINTERFACE=wlan0\n")], &["device"]),
            Some("Wi-Fi")
        );
        assert_eq!(kind("br0", &ethernet, &["bridge"]), Some("a bridge"));
        assert_eq!(kind("bond0", &ethernet, &["bonding"]), Some("a bond"));
        assert_eq!(kind("eth1", &ethernet, &["device", "master"]), Some("a part of another interface"));
        assert_eq!(kind("tun0", &[("tun_flags", "0x1\n")], &[]), Some("a VPN or a virtual machine's"));
        assert_eq!(kind("wg0", &[("uevent", "DEVTYPE=wireguard\n")], &[]), Some("a VPN"));
        assert_eq!(kind("veth0", &ethernet, &[]), Some("no hardware of its own"));
        assert_eq!(kind("ib0", &[("type", "32\n")], &["device"]), Some("no Ethernet"));
    }

    #[test]
    fn a_server_on_this_machine_is_refused() {
        let error = Link::towards("127.0.0.1:10809".parse().unwrap()).unwrap_err();
        assert!(matches!(error, NoWay::Itself(_)), "{error}");
    }
}
