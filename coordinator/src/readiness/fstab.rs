//! What is mounted at boot, and whether it will be found.
//!
//! Owns the rules for `/etc/fstab`. Format: fstab(5).

use super::{Named, Report, System};

/// A line that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) spec: String,
    pub(super) mount_point: String,
    /// Whether the boot goes on without it.
    pub(super) may_fail: bool,
}

pub(super) fn lines(text: &str) -> Vec<Line> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (spec, mount_point) = (fields.next()?.to_owned(), fields.next()?.to_owned());
            let kind = fields.next().unwrap_or_default();
            let options = fields.next().unwrap_or_default();
            let may_fail =
                kind == "swap" || options.split(',').any(|option| matches!(option, "nofail" | "noauto"));
            Some(Line { spec, mount_point, may_fail })
        })
        .collect()
}

pub(super) fn look(system: &System<'_>, report: &mut Report) {
    let Some(text) = system.root.text("/etc/fstab") else {
        report.seen.push("no /etc/fstab".to_owned());
        return;
    };
    for line in lines(&text) {
        let what = format!("/etc/fstab mounts {} on {}", line.spec, line.mount_point);
        let by_uuid = "name it by UUID= in /etc/fstab (`blkid` shows it)";
        match system.name(&line.spec) {
            Named::Found | Named::Other => {}
            Named::Missing if line.may_fail => {
                report.note(
                    format!("{what}, which is on no protected disk"),
                    "protect its disk too if it is needed",
                );
            }
            Named::Missing => report.critical(
                format!("{what}, which is on no protected disk: the boot will stop and wait for it"),
                "protect its disk too, or add `nofail` to its options",
            ),
            Named::ByOldName if line.may_fail => {
                report.note(format!("{what}, a name that there will not be"), by_uuid);
            }
            Named::ByOldName => report.critical(
                format!(
                    "{what}: the name of its device will be another (/dev/{}...)",
                    system.planned.node_prefix
                ),
                by_uuid,
            ),
            Named::ByOrder => {
                report.warning(format!("{what}: the name of its device goes by the order of disks"), by_uuid);
            }
            Named::ByPlace => {
                report.warning(
                    format!("{what}: it is found by its connection or serial number, which may be another"),
                    by_uuid,
                );
            }
        }
    }
}
