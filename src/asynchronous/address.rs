//! Which addresses are part of the Internet: only these are told anything, unless an operator lists
//! others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Azure's platform answers there, to each of its machines, with what is theirs alone.
const AZURE_PLATFORM: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether a notice may go to an address.
pub(crate) fn may_be_told(address: IpAddr, networks: &[IpNet], only_listed: bool) -> bool {
    let carried = carried(address);
    let lists = |it: &IpNet| it.contains(&address) || it.contains(&carried);
    networks.iter().any(lists) || (!only_listed && is_public(carried))
}

/// The IPv4 address that an IPv6 one stands for, where packets to the one reach the other.
fn carried(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let segments = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Mapped, and the compatible form that was given up (the unspecified and the loopback
        // address are of that form, and as little public as 0.0.0.0 and 0.0.0.1).
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => v4(high, low),
        // Translated, as the kernel writes it (RFC 2765).
        [0, 0, 0, 0, 0xffff, 0, high, low] => v4(high, low),
        // NAT64 (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// By the registries of special addresses (RFC 6890 and its successors).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = match (a, b, c) {
        // This network, private, loopback.
        (0 | 10 | 127, _, _) => true,
        // Shared by the customers of a carrier; one cloud's metadata.
        (100, 64..=127, _) => true,
        // Link-local: the metadata of most clouds.
        (169, 254, _) => true,
        (172, 16..=31, _) | (192, 168, _) => true,
        // Protocol assignments, documentation, the relay of 6to4, benchmarks.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18 | 19, _) => true,
        (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224.., _, _) => true,
        _ => address == AZURE_PLATFORM,
    };
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Protocol assignments (Teredo, benchmarks, ORCHID), documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] => false,
        [0x3fff, 0..=0xfff, ..] => false,
        // All that is given out as unicast; not fc00::/7, fe80::/10, fec0::/10, ff00::/8, NAT64 of
        // one's own.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str, networks: &[&str], only_listed: bool) -> bool {
        let networks: Vec<IpNet> = networks.iter().map(|it| it.parse().unwrap()).collect();
        may_be_told(address.parse().unwrap(), &networks, only_listed)
    }

    #[test]
    fn addresses_that_are_not_of_the_internet_are_told_nothing() {
        for address in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.170.2",
            "100.64.0.1",
            "100.100.100.200",
            "192.0.0.192",
            "192.0.2.1",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "240.0.0.1",
            "168.63.129.16",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:a9fe:a9fe::1",
            "2002:7f00:1::",
            "2001::1",
            "fd00:ec2::254",
            "fc00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2001:db8::1",
            "3fff::1",
            "100::1",
        ] {
            assert!(!told(address, &[], false), "{address}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_told() {
        for address in [
            "8.8.8.8",
            "172.32.0.1",
            "100.63.0.1",
            "100.128.0.1",
            "192.0.1.1",
            "2606:4700::1111",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
        ] {
            assert!(told(address, &[], false), "{address}");
            assert!(!told(address, &[], true), "{address} over plain HTTP");
        }
    }

    #[test]
    fn an_operator_may_list_networks() {
        assert!(told("10.1.2.3", &["10.1.0.0/16"], true));
        assert!(told("::ffff:10.1.2.3", &["10.1.0.0/16"], false));
        assert!(!told("10.2.2.3", &["10.1.0.0/16"], false));
        assert!(told("::1", &["::1/128"], true));
        assert!(told("fd00::7", &["fd00::/64"], true));
    }
}
