//! How the network is set up, and whether that fits other cards in other slots.
//!
//! Owns the rules for ifupdown, netplan, systemd-networkd, NetworkManager and network-scripts. Hardware addresses are kept at the
//! target; slots, and so names such as `ens192`, are not.

use std::collections::BTreeSet;

use super::{Report, System};

/// Folders and files with settings of networks, and what their names end with.
const PLACES: [(&str, &str); 6] = [
    ("/etc/network", "interfaces"),
    ("/etc/network/interfaces.d", ""),
    ("/etc/netplan", ".yaml"),
    ("/etc/systemd/network", ".network"),
    ("/etc/NetworkManager/system-connections", ".nmconnection"),
    ("/etc/sysconfig/network-scripts", ""),
];

pub(super) fn look(system: &System<'_>, report: &mut Report) {
    let cards = &system.subject.inventory.network_cards;
    let mut names = BTreeSet::new();
    let (mut fixed, mut dynamic, mut by_mac, mut files) = (false, false, false, 0);
    for (folder, ending) in PLACES {
        for name in system.root.list(folder) {
            let is_wanted = name.ends_with(ending)
                && (folder != "/etc/sysconfig/network-scripts" || name.starts_with("ifcfg-"));
            let Some(text) = is_wanted.then(|| system.root.text(&format!("{folder}/{name}"))).flatten()
            else {
                continue;
            };
            files += 1;
            let told = settings(&text);
            names.extend(told.names);
            fixed |= told.fixed;
            dynamic |= told.dynamic;
            let lower = text.to_ascii_lowercase();
            by_mac |= cards
                .iter()
                .any(|card| !card.mac.is_empty() && lower.contains(&card.mac.to_ascii_lowercase()));
        }
    }
    if files == 0 {
        report.seen.push("no network settings of a known kind".to_owned());
        return;
    }
    let kind = match (dynamic, fixed) {
        (true, true) => "DHCP and fixed addresses",
        (true, false) => "DHCP",
        (false, true) => "fixed addresses",
        (false, false) => "settings without addresses",
    };
    report.seen.push(format!("network: {kind} in {files} files"));
    names.retain(|name| is_by_slot(name));
    // Netplan and its like may match by address and only give the name.
    if !names.is_empty() && !by_mac {
        let names: Vec<String> = names.into_iter().collect();
        report.warning(
            format!(
                "its network settings are for {}: such names go by the card's slot, which will be another, so it will \
                 have no network",
                names.join(", ")
            ),
            "have settings match the card's address (netplan `match: macaddress:`, `MACAddress=` in a .network or .link file, \
             HWADDR=), which is kept",
        );
    }
    if fixed {
        report.note(
            "it has fixed addresses; they must be valid in the target's network",
            "use DHCP, or a bridge to a network with the same addresses",
        );
    }
}

/// What a file of settings says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    names: BTreeSet<String>,
    fixed: bool,
    dynamic: bool,
}

/// Reads the few settings that matter, whichever program they are for.
fn settings(text: &str) -> Told {
    let mut told = Told::default();
    let mut in_cards = false;
    for line in text.lines() {
        let trimmed = line.trim().trim_matches('"');
        if trimmed.starts_with('#') || trimmed.is_empty() {
            continue;
        }
        let lower = trimmed.to_ascii_lowercase().replace([' ', '"'], "");
        told.dynamic |= [
            "dhcp4:true",
            "dhcp4:yes",
            "dhcp=yes",
            "dhcp=ipv4",
            "dhcp=true",
            "bootproto=dhcp",
            "method=auto",
        ]
        .iter()
        .any(|word| lower.starts_with(word))
            || lower.starts_with("iface") && lower.ends_with("dhcp");
        told.fixed |=
            ["addresses:", "address=", "address1=", "ipaddr"].iter().any(|word| lower.starts_with(word))
                || lower.starts_with("iface") && lower.ends_with("inetstatic");
        let mut words = trimmed.split_whitespace();
        if let Some("iface" | "auto" | "allow-hotplug") = words.next() {
            told.names.extend(words.next().map(str::to_owned));
        }
        for key in ["Name=", "interface-name=", "DEVICE="] {
            if let Some(value) = trimmed.strip_prefix(key) {
                told.names.extend(value.split_whitespace().map(|name| name.trim_matches('"').to_owned()));
            }
        }
        // Netplan: the keys one step below `ethernets:`.
        let indent = line.len() - line.trim_start().len();
        if trimmed == "ethernets:" {
            in_cards = true;
        } else if in_cards && indent <= 2 {
            in_cards = false;
        } else if in_cards
            && indent <= 4
            && let Some(name) = trimmed.strip_suffix(':')
        {
            told.names.insert(name.to_owned());
        }
    }
    told
}

/// Whether a card's name goes by where it is plugged in.
fn is_by_slot(name: &str) -> bool {
    let rest = name.strip_prefix("en").or_else(|| name.strip_prefix("wl")).unwrap_or_default();
    let mut letters = rest.chars();
    matches!(letters.next(), Some('o' | 's' | 'p' | 'P'))
        && letters.next().is_some_and(|next| next.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::{is_by_slot, settings};

    #[test]
    fn names_and_kinds_of_addresses_are_found_in_all_styles() {
        let netplan = "network:\n  version: 2\n  ethernets:\n    ens192:\n      addresses: [10.0.0.2/24]\n    ens224:\n      dhcp4: true\n";
        for (text, names, fixed, dynamic) in [
            (
                "auto lo\niface lo inet loopback\nallow-hotplug ens3\niface ens3 inet dhcp\n",
                "ens3 lo",
                false,
                true,
            ),
            ("iface eth0 inet static\n  address 10.0.0.2/24\n", "eth0", true, false),
            (netplan, "ens192 ens224", true, true),
            ("[Match]\nName=enp1s0\n[Network]\nDHCP=yes\n", "enp1s0", false, true),
            (
                "[connection]\ninterface-name=ens192\n[ipv4]\naddress1=10.0.0.2/24\nmethod=manual\n",
                "ens192",
                true,
                false,
            ),
            ("DEVICE=\"ens192\"\nBOOTPROTO=\"dhcp\"\n", "ens192", false, true),
            ("# iface ens9 inet dhcp\n", "", false, false),
        ] {
            let told = settings(text);
            let found: Vec<String> = told.names.into_iter().collect();
            assert_eq!(
                (found.join(" ").as_str(), told.fixed, told.dynamic),
                (names, fixed, dynamic),
                "{text}"
            );
        }
        let by_slot: Vec<bool> =
            ["ens192", "enp1s0", "eno1", "eth0", "lo", "enx525400123456", "entry"].map(is_by_slot).to_vec();
        assert_eq!(by_slot, [true, true, true, false, false, false, false]);
    }
}
