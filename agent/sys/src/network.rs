//! Setting up a network interface by ioctl(2) alone: its state, its address, and routes to single hosts.
//!
//! Sources: include/uapi/linux/if.h, route.h, ipv6_route.h and sockios.h; net/ipv4/devinet.c, net/ipv6/addrconf.c.

#![expect(unsafe_code, reason = "ioctl(2)")]

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

mod raw {
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_address, libc::SIOCSIFADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_netmask, libc::SIOCSIFNETMASK, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mac, libc::SIOCSIFHWADDR, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(add_route, libc::SIOCADDRT, super::Route);
    nix::ioctl_write_ptr_bad!(set_address6, libc::SIOCSIFADDR, libc::in6_ifreq);
    nix::ioctl_write_ptr_bad!(remove_address6, libc::SIOCDIFADDR, libc::in6_ifreq);
    nix::ioctl_write_ptr_bad!(add_route6, libc::SIOCADDRT, super::Route6);
}

/// `struct rtentry`.
#[repr(C)]
#[derive(Debug)]
struct Route {
    rt_pad1: libc::c_ulong,
    rt_dst: libc::sockaddr,
    rt_gateway: libc::sockaddr,
    rt_genmask: libc::sockaddr,
    rt_flags: libc::c_ushort,
    rt_pad2: libc::c_short,
    rt_pad3: libc::c_ulong,
    rt_pad4: *mut libc::c_void,
    rt_metric: libc::c_short,
    rt_dev: *const libc::c_char,
    rt_mtu: libc::c_ulong,
    rt_window: libc::c_ulong,
    rt_irtt: libc::c_ushort,
}

/// `struct in6_rtmsg`.
#[repr(C)]
#[derive(Debug)]
struct Route6 {
    rtmsg_dst: libc::in6_addr,
    rtmsg_src: libc::in6_addr,
    rtmsg_gateway: libc::in6_addr,
    rtmsg_type: u32,
    rtmsg_dst_len: u16,
    rtmsg_src_len: u16,
    rtmsg_metric: u32,
    rtmsg_info: libc::c_ulong,
    rtmsg_flags: u32,
    rtmsg_ifindex: libc::c_int,
}

/// An interface, by its name.
#[derive(Debug)]
pub struct Interface {
    name: CString,
    v4: OwnedFd,
}

impl Interface {
    /// The interface called `name`.
    ///
    /// # Errors
    /// The name is too long, or this kernel has no IPv4.
    pub fn named(name: &str) -> io::Result<Interface> {
        let name = CString::new(name).map_err(io::Error::other)?;
        if name.as_bytes_with_nul().len() > libc::IFNAMSIZ {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let v4 = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Interface { name, v4 })
    }

    /// A request about it, with nothing else in it.
    fn request(&self) -> libc::ifreq {
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(self.name.as_bytes()) {
            *to = from.cast_signed();
        }
        libc::ifreq {
            ifr_name: name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_addr: sockaddr_v4(Ipv4Addr::UNSPECIFIED) },
        }
    }

    /// Brings it up, or takes it down: then its device writes nothing to memory any more.
    ///
    /// # Errors
    /// The kernel's, or its driver's.
    pub fn set_up(&self, is_up: bool) -> io::Result<()> {
        let mut request = self.request();
        // SAFETY: the socket is open, and the kernel reads and writes one `ifreq`.
        unsafe { raw::get_flags(self.v4.as_raw_fd(), &raw mut request) }?;
        // SAFETY: the request above has filled in the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let flags = if is_up { flags | libc::IFF_UP } else { flags & !libc::IFF_UP };
        // What is cut off would be the sign's bits.
        request.ifr_ifru.ifru_flags = flags.to_le_bytes().first_chunk().map_or(0, |low| i16::from_le_bytes(*low));
        // SAFETY: the socket is open, and the kernel reads one `ifreq`.
        unsafe { raw::set_flags(self.v4.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    /// Gives it, as long as it is down, another hardware address; it is an Ethernet interface.
    ///
    /// # Errors
    /// `EBUSY` where it is up and its driver cannot do it then; the driver's own.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        let mut request = self.request();
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(mac) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_hwaddr = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: data };
        // SAFETY: the socket is open, and the kernel reads one `ifreq`.
        unsafe { raw::set_mac(self.v4.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    /// Sets the length of its longest packet, in bytes.
    ///
    /// # Errors
    /// `EINVAL` where its driver does not take it.
    pub fn set_mtu(&self, bytes: u32) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_mtu = bytes.try_into().map_err(io::Error::other)?;
        // SAFETY: the socket is open, and the kernel reads one `ifreq`.
        unsafe { raw::set_mtu(self.v4.as_raw_fd(), &raw const request) }?;
        Ok(())
    }

    /// Gives it an address, and no network around it: it reaches nobody but those to whom there are routes.
    ///
    /// # Errors
    /// The kernel's; `EAFNOSUPPORT` where it does not have that protocol.
    pub fn set_address(&self, address: IpAddr, index: u32) -> io::Result<()> {
        match address {
            IpAddr::V4(address) => {
                let mut request = self.request();
                request.ifr_ifru.ifru_addr = sockaddr_v4(address);
                // SAFETY: the socket is open, and the kernel reads one `ifreq`.
                unsafe { raw::set_address(self.v4.as_raw_fd(), &raw const request) }?;
                request.ifr_ifru.ifru_netmask = sockaddr_v4(Ipv4Addr::BROADCAST);
                // SAFETY: as above.
                unsafe { raw::set_netmask(self.v4.as_raw_fd(), &raw const request) }?;
            }
            IpAddr::V6(address) => {
                let request = address6(address, index)?;
                let v6 = v6()?;
                // SAFETY: the socket is open, and the kernel reads one `in6_ifreq`.
                unsafe { raw::set_address6(v6.as_raw_fd(), &raw const request) }?;
            }
        }
        Ok(())
    }

    /// Takes its address away, and with it all routes.
    ///
    /// # Errors
    /// The kernel's; `EADDRNOTAVAIL` where it does not have it.
    pub fn remove_address(&self, address: IpAddr, index: u32) -> io::Result<()> {
        match address {
            IpAddr::V4(_) => {
                let request = self.request();
                // SAFETY: the socket is open, and the kernel reads one `ifreq`, whose address is none.
                unsafe { raw::set_address(self.v4.as_raw_fd(), &raw const request) }?;
            }
            IpAddr::V6(address) => {
                let request = address6(address, index)?;
                let v6 = v6()?;
                // SAFETY: the socket is open, and the kernel reads one `in6_ifreq`.
                unsafe { raw::remove_address6(v6.as_raw_fd(), &raw const request) }?;
            }
        }
        Ok(())
    }

    /// Adds a route to one host: directly, or through a router that it reaches directly.
    ///
    /// # Errors
    /// The kernel's; `EEXIST` where there is one. The router's protocol is another than the host's.
    pub fn add_route(&self, to: IpAddr, through: Option<IpAddr>, index: u32) -> io::Result<()> {
        let flags = libc::RTF_UP | libc::RTF_HOST | if through.is_some() { libc::RTF_GATEWAY } else { 0 };
        match (to, through) {
            (IpAddr::V4(to), None | Some(IpAddr::V4(_))) => {
                let router = if let Some(IpAddr::V4(router)) = through { router } else { Ipv4Addr::UNSPECIFIED };
                let route = Route {
                    rt_pad1: 0,
                    rt_dst: sockaddr_v4(to),
                    rt_gateway: sockaddr_v4(router),
                    rt_genmask: sockaddr_v4(Ipv4Addr::BROADCAST),
                    rt_flags: flags,
                    rt_pad2: 0,
                    rt_pad3: 0,
                    rt_pad4: std::ptr::null_mut(),
                    rt_metric: 0,
                    rt_dev: self.name.as_ptr(),
                    rt_mtu: 0,
                    rt_window: 0,
                    rt_irtt: 0,
                };
                // SAFETY: the socket is open; the kernel reads one `rtentry`, and the name that it points to, which
                // lives in `self`.
                unsafe { raw::add_route(self.v4.as_raw_fd(), &raw const route) }?;
            }
            (IpAddr::V6(to), None | Some(IpAddr::V6(_))) => {
                let router = if let Some(IpAddr::V6(router)) = through { router } else { Ipv6Addr::UNSPECIFIED };
                let route = Route6 {
                    rtmsg_dst: in6(to),
                    rtmsg_src: in6(Ipv6Addr::UNSPECIFIED),
                    rtmsg_gateway: in6(router),
                    rtmsg_type: 0,
                    rtmsg_dst_len: 128,
                    rtmsg_src_len: 0,
                    rtmsg_metric: 1,
                    rtmsg_info: 0,
                    rtmsg_flags: flags.into(),
                    rtmsg_ifindex: index.try_into().map_err(io::Error::other)?,
                };
                let v6 = v6()?;
                // SAFETY: the socket is open, and the kernel reads one `in6_rtmsg`.
                unsafe { raw::add_route6(v6.as_raw_fd(), &raw const route) }?;
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the router has another kind of address")),
        }
        Ok(())
    }
}

/// An address without a network around it.
fn address6(address: Ipv6Addr, index: u32) -> io::Result<libc::in6_ifreq> {
    let ifr6_ifindex = index.try_into().map_err(io::Error::other)?;
    Ok(libc::in6_ifreq { ifr6_addr: in6(address), ifr6_prefixlen: 128, ifr6_ifindex })
}

fn v6() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// A `sockaddr_in` in the place of a `sockaddr`: the port, which is 0, then the address, in the network's order.
fn sockaddr_v4(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    for (to, from) in data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    libc::sockaddr { sa_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(), sa_data: data }
}

fn in6(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: address.octets() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        // include/uapi/linux/route.h on a machine of 64 bits.
        assert_eq!(size_of::<Route>(), 120);
        assert_eq!(std::mem::offset_of!(Route, rt_flags), 56);
        assert_eq!(std::mem::offset_of!(Route, rt_dev), 88);
        assert_eq!(size_of::<libc::ifreq>(), 40);
        assert_eq!((size_of::<libc::in6_ifreq>(), size_of::<Route6>()), (24, 80));
    }

    #[test]
    fn names_are_as_long_as_the_kernel_has_them() {
        assert!(Interface::named("sixteen-and-more").is_err());
        assert!(Interface::named("a\0b").is_err());
        assert!(Interface::named("none-such").is_ok_and(|interface| interface.set_mtu(1500).is_err()));
    }
}
