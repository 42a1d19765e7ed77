//! Whose socket takes the connections to a port of this machine. A stranger that listens there first
//! would be taken for the container, and be given all that its clients send.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::{fs, io};

use crate::processes;

/// The state of a socket that listens, as the kernel prints it.
const LISTENS: &str = "0A";

/// Who takes the connections to a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holder {
    /// One of those that were asked about.
    Own,
    /// Somebody else, as people call it.
    Stranger(String),
    /// Nobody has a socket there.
    Nobody,
    /// The kernel does not let us see it.
    Unseen,
}

/// Who takes the connections to a port of 127.0.0.1, of some processes or another. Blocking.
pub(super) fn holder(port: u16, own: &BTreeSet<u32>) -> Holder {
    let Ok(sockets) = listening(port) else { return Holder::Unseen };
    if sockets.is_empty() {
        return Holder::Nobody;
    }
    let mut left = sockets;
    let mut is_seen = true;
    for process in own {
        match sockets_of(*process) {
            Ok(held) => left.retain(|socket| !held.contains(socket)),
            // One that has ended meanwhile holds nothing.
            Err(error) => is_seen &= error.kind() == io::ErrorKind::NotFound,
        }
    }
    match (left.is_empty(), is_seen) {
        (true, _) => Holder::Own,
        (false, false) => Holder::Unseen,
        (false, true) => Holder::Stranger(named(&left)),
    }
}

/// The sockets to which the kernel gives connections to a port of 127.0.0.1: those at just that
/// address, else those at all addresses; an IPv6 socket where there is none of IPv4.
fn listening(port: u16) -> io::Result<BTreeSet<u64>> {
    let local = Ipv4Addr::LOCALHOST;
    let of_four = [local.octets(), Ipv4Addr::UNSPECIFIED.octets()].map(|it| words(&it));
    let of_six = [local.to_ipv6_mapped().octets(), Ipv6Addr::UNSPECIFIED.octets()];
    let of_six = of_six.map(|it| words(&it));
    let tables = [("/proc/self/net/tcp", of_four), ("/proc/self/net/tcp6", of_six)];
    for (path, addresses) in tables {
        let table = match fs::read_to_string(path) {
            Ok(table) => table,
            // A machine without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for address in addresses {
            let wanted = format!("{address}:{port:04X}");
            let found: BTreeSet<u64> =
                table.lines().filter_map(|line| socket_at(line, &wanted)).collect();
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(BTreeSet::new())
}

/// An address as the kernel prints it: words of four bytes, each as a number of this machine.
fn words(address: &[u8]) -> String {
    let word = |four: &[u8]| {
        let four = four.try_into().unwrap_or_default();
        format!("{:08X}", u32::from_ne_bytes(four))
    };
    address.chunks_exact(4).map(word).collect()
}

/// The inode of a line's socket, where it listens at an address.
fn socket_at(line: &str, address: &str) -> Option<u64> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let is_it = fields.next()? == address && fields.nth(1)? == LISTENS;
    is_it.then(|| fields.nth(5)?.parse().ok()).flatten()
}

/// The inodes of all sockets of a process.
fn sockets_of(process: u32) -> io::Result<BTreeSet<u64>> {
    let mut sockets = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        // A file that was closed meanwhile is none.
        let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else { continue };
        let inode = target.to_str().and_then(|it| it.strip_prefix("socket:[")?.strip_suffix(']'));
        sockets.extend(inode.and_then(|it| it.parse::<u64>().ok()));
    }
    Ok(sockets)
}

/// Who holds one of these, for people.
fn named(sockets: &BTreeSet<u64>) -> String {
    let holds = |process: &u32| sockets_of(*process).is_ok_and(|held| !held.is_disjoint(sockets));
    match processes::all().into_iter().find(holds) {
        Some(process) => {
            let name = processes::name_of(process).unwrap_or_else(|| "a process".to_owned());
            format!("{name} (process {process})")
        }
        None => "a process of somebody else".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_is_that_of_the_process_whose_socket_listens_there() {
        let own = BTreeSet::from([std::process::id()]);
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::ffff:127.0.0.1]:0", "[::]:0"] {
            // A machine without IPv6 has none of the latter two.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert_eq!(holder(port, &own), Holder::Own, "{address}");
            let Holder::Stranger(who) = holder(port, &BTreeSet::new()) else {
                panic!("{address} is not seen");
            };
            assert!(who.ends_with(&format!("(process {})", std::process::id())), "{who}");
            drop(listener);
            assert_eq!(holder(port, &own), Holder::Nobody, "{address}");
        }
    }

    #[test]
    fn only_sockets_that_listen_at_the_address_count() {
        let line = |local: &str, state: &str| {
            format!(
                "  7: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0 0 4242 1 0000 100"
            )
        };
        let address = "0100007F:1F90";
        assert_eq!(socket_at(&line(address, "0A"), address), Some(4242));
        assert_eq!(socket_at(&line(address, "01"), address), None);
        assert_eq!(socket_at(&line("00000000:1F90", "0A"), address), None);
        assert_eq!(socket_at("  sl  local_address rem_address   st", address), None);
    }
}
