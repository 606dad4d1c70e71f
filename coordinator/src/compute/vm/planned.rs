//! The drivers that a definition asks of the system in it.
//!
//! Owns the names of Linux's drivers for QEMU's devices. Pure.

use holdfast_common::wire::Firmware;

use super::definition::{Definition, DiskModel, NetworkModel};
use crate::compute::machines::{Controller, Planned, PlannedCard};

impl DiskModel {
    /// Drivers that find a disk on this controller, and how Linux names it.
    const fn drivers(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Virtio => (&["virtio_pci", "virtio_blk"], "vd"),
            Self::VirtioScsi => (&["virtio_pci", "virtio_scsi", "sd_mod"], "sd"),
            Self::Nvme => (&["nvme"], "nvme"),
            Self::Sata => (&["ahci", "sd_mod"], "sd"),
            Self::Ide => (&["ata_piix", "sd_mod"], "sd"),
            Self::Pvscsi => (&["vmw_pvscsi", "sd_mod"], "sd"),
            Self::Lsi => (&["mptsas", "sd_mod"], "sd"),
        }
    }
}

impl NetworkModel {
    const fn drivers(self) -> &'static [&'static str] {
        match self {
            Self::Virtio => &["virtio_pci", "virtio_net"],
            Self::E1000 => &["e1000"],
            Self::E1000e => &["e1000e"],
            Self::Vmxnet3 => &["vmxnet3"],
        }
    }
}

/// What disks can hang on.
pub(super) fn controllers() -> Vec<Controller> {
    let controller = |model: DiskModel| {
        let drivers = model.drivers().0.iter().map(|name| (*name).to_owned()).collect();
        Controller { model: model.name().to_owned(), drivers }
    };
    DiskModel::ALL.into_iter().map(controller).collect()
}

impl Definition {
    /// What its system needs.
    #[must_use]
    pub fn planned(&self) -> Planned {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let (drivers, prefix) = self.disk_model.drivers();
        let card = |card: &super::definition::Card| PlannedCard {
            mac: card.mac.clone(),
            drivers: owned(card.model.drivers()),
        };
        Planned {
            firmware: Some(if self.uefi_code.is_some() { Firmware::Uefi } else { Firmware::Bios }),
            disk_model: self.disk_model.name().to_owned(),
            disk_drivers: owned(drivers),
            node_prefix: prefix.to_owned(),
            cards: self.cards.iter().map(card).collect(),
            remarks: self.remarks.clone(),
        }
    }
}
