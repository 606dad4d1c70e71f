//! Whether Windows will have a network.
//!
//! Owns the names of Windows' services for network cards, and the rules for addresses. Windows keeps settings per card and place:
//! another card, or the same one in another slot, begins with DHCP.

use std::collections::BTreeSet;

use super::{super::Report, Windows};
use crate::compute::machines::Planned;

/// Drivers of Linux, and the services of Windows for the same card; whether Windows brings its driver along.
const CARDS: [(&str, &[&str], bool); 4] = [
    ("virtio_net", &["netkvm"], false),
    ("vmxnet3", &["vmxnet3ndis6", "vmxnet3ndis5"], false),
    ("e1000e", &["e1i65x64", "e1i68x64", "e1i63x64", "e1iexpress"], true),
    ("e1000", &["E1G60"], true),
];
/// Further ones, of hypervisors that it may have come from.
const OTHERS: [&str; 2] = ["netvsc", "xennet"];

pub(super) fn look(windows: &Windows<'_>, planned: &Planned, report: &mut Report) -> Result<(), String> {
    let mut installed = Vec::new();
    for name in CARDS.iter().flat_map(|(_, names, _)| names.iter().copied()).chain(OTHERS) {
        if windows.has_service(name)? {
            installed.push(name);
        }
    }
    if !installed.is_empty() {
        report.seen.push(format!("drivers of network cards: {}", installed.join(", ")));
    }
    let wanted: BTreeSet<&str> =
        planned.cards.iter().flat_map(|card| card.drivers.iter().map(String::as_str)).collect();
    for (linux, names, comes_along) in CARDS {
        let lacks = !comes_along && !names.iter().any(|name| installed.contains(name));
        if wanted.contains(linux) && lacks {
            report.warning(
                format!("its network card will be of a kind for which Windows needs {}, which is not installed", names[0]),
                "install the driver on the source (virtio-win, VMware Tools), or set `network_model = \"e1000e\"` in its hardware file",
            );
        }
    }
    addresses(windows, report)
}

fn addresses(windows: &Windows<'_>, report: &mut Report) -> Result<(), String> {
    let Some(cards) = windows.system.key(&windows.setting(r"Services\Tcpip\Parameters\Interfaces"))? else {
        return Ok(());
    };
    let mut fixed = BTreeSet::new();
    for card in cards.children()? {
        let card = card?;
        if card.value("EnableDHCP")?.and_then(|value| value.number()) != Some(0) {
            continue;
        }
        let addresses = card.value("IPAddress")?.map(|value| value.texts()).unwrap_or_default();
        fixed.extend(addresses.into_iter().filter(|address| address != "0.0.0.0"));
    }
    if fixed.is_empty() {
        report.seen.push("network: DHCP".to_owned());
        return Ok(());
    }
    let fixed: Vec<String> = fixed.into_iter().collect();
    report.warning(
        format!(
            "its fixed addresses ({}) belong to the source's network cards; at the target Windows sees other cards, and those begin with \
             DHCP",
            fixed.join(", ")
        ),
        "have the target's network give it these addresses by DHCP (its cards keep their hardware addresses), or set them anew from a \
         plan's script",
    );
    Ok(())
}
