//! The kinds of files in which something lives on from one version to the next.
//!
//! Owns the names only. [`DATA_FOLDER`] is compared with a coordinator's folder where each kind is damaged; whoever must cover every kind
//! compares with this.

/// Files of a coordinator's data folder, in order; `*` stands for whatever has an id or a number in it.
pub const DATA_FOLDER: [&str; 18] = [
    "authority/authority.crt",
    "authority/authority.key",
    "branches/*/vda.branch",
    "catalog.sqlite",
    "drills/*.json",
    "machines/*.json",
    "operators.json",
    "plans/shop.toml",
    "readiness/*.json",
    "store/disks/*/audit.json",
    "store/disks/*/checks.json",
    "store/disks/*/damaged.json",
    "store/disks/*/differs.json",
    "store/disks/*/index/*",
    "store/disks/*/journal/*.segment",
    "store/disks/*/kept",
    "store/disks/*/kept.copy",
    "store/disks/*/manifest",
];

/// Files elsewhere: beside images, of machines that run at the target, and in an agent's state folder. Locks and sockets say nothing
/// to a later program, and marks that are empty say it by their names.
pub const ELSEWHERE: [&str; 6] = [
    "IMAGE.holdfast.json",
    "agent/hooks-frozen",
    "agent/identity.json",
    "agent/incarnations.json",
    "agent/source-stopped",
    "vm/*/machine.json",
];
