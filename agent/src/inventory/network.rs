//! Network cards.
//!
//! Owns the reading of `/sys/class/net` and of the addresses in /proc. Invariant: only cards with a device behind them are
//! listed; loopback, bridges, bonds and tunnels are software.

use std::collections::BTreeMap;

use holdfast_common::wire::NetworkCard;

use super::{Roots, read};

/// Most cards listed.
const CARDS_MAX: usize = 256;

/// All network cards, by name.
pub(super) fn cards(roots: &Roots) -> Vec<NetworkCard> {
    let folder = roots.sys.join("class/net");
    let mut addresses = addresses(roots);
    read::names(&folder)
        .into_iter()
        .filter(|name| folder.join(name).join("device").exists())
        .take(CARDS_MAX)
        .map(|name| NetworkCard {
            mac: read::text(&folder.join(&name).join("address")).unwrap_or_default(),
            driver: read::link_name(&folder.join(&name).join("device/driver")).unwrap_or_default(),
            addresses: addresses.remove(&name).unwrap_or_default(),
            name,
        })
        .collect()
}

/// Addresses by interface: version 6 from `if_inet6`; version 4 by matching the host's own addresses in the forwarding
/// table with the networks that each interface reaches directly.
fn addresses(roots: &Roots) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let own = own_addresses(&read::text(&roots.proc.join("net/fib_trie")).unwrap_or_default());
    for (interface, network, mask) in networks(&read::text(&roots.proc.join("net/route")).unwrap_or_default())
    {
        for address in own.iter().filter(|address| u32::from(**address) & mask == network) {
            let text = format!("{address}/{}", mask.count_ones());
            let addresses = found.entry(interface.clone()).or_default();
            if !addresses.contains(&text) {
                addresses.push(text);
            }
        }
    }
    for line in read::text(&roots.proc.join("net/if_inet6")).unwrap_or_default().lines() {
        if let Some((interface, address)) = version_six(line) {
            found.entry(interface).or_default().push(address);
        }
    }
    found
}

/// `ADDRESS INDEX PREFIX SCOPE FLAGS NAME`, numbers in hexadecimal.
fn version_six(line: &str) -> Option<(String, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [address, _, prefix, _, _, name] = fields[..] else { return None };
    if address.len() != 32 {
        return None;
    }
    let address = std::net::Ipv6Addr::from(u128::from_str_radix(address, 16).ok()?);
    let prefix = u8::from_str_radix(prefix, 16).ok()?;
    Some((name.to_owned(), format!("{address}/{prefix}")))
}

/// Lines of `route` without a gateway: interface, network and mask in host order.
fn networks(table: &str) -> Vec<(String, u32, u32)> {
    let number = |text: &str| Some(u32::from_str_radix(text, 16).ok()?.swap_bytes());
    let network = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (interface, gateway) = (fields.first()?, number(fields.get(2)?)?);
        let (network, mask) = (number(fields.get(1)?)?, number(fields.get(7)?)?);
        (gateway == 0 && mask != 0).then(|| ((*interface).to_owned(), network, mask))
    };
    table.lines().skip(1).filter_map(network).collect()
}

/// Addresses that `fib_trie` calls local, without loopback: a line `|-- ADDRESS`, followed by `/32 host LOCAL`.
fn own_addresses(table: &str) -> Vec<std::net::Ipv4Addr> {
    let mut own: Vec<std::net::Ipv4Addr> = Vec::new();
    let mut last = None;
    for line in table.lines() {
        if let Some(address) = line.trim_start().strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.trim_start().starts_with("/32 host LOCAL") {
            own.extend(last.take().filter(|address: &std::net::Ipv4Addr| !address.is_loopback()));
        }
    }
    own.sort();
    own.dedup();
    own
}
