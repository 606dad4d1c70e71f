//! The agent's own program, folder, state and log on what it freezes: nothing of that may stop it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use holdfast_tests::file_system::{Kind, MountedDisk};

use super::helper::{Holder, alone, becomes};

const MIB: u64 = 1 << 20;

#[test]
fn an_agent_that_lives_on_what_it_freezes_goes_on() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    let this = env::current_exe()?;
    let size = fs::metadata(&this)?.len();
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = MountedDisk::create(kind, 400 * MIB + size)?;
        let program = disk.folder().join("agent");
        fs::copy(&this, &program)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        let log = disk.folder().join("log");
        let log_file = fs::File::create(&log)?;
        let bound = Duration::from_secs(30);
        let mut holder =
            Holder::start("cutter", &program, &[&disk.device], bound, |command: &mut Command| {
                command.current_dir(disk.folder()).stderr(Stdio::from(log_file)).stdin(Stdio::null());
            })?;
        // A deadlock would end at the bound, with an error instead of this word.
        holder.line_with("done")?;
        ensure!(becomes(|| holder.child.try_wait().is_ok_and(|status| status.is_some())), "it did not end");
        drop(holder);
        let lines = fs::read_to_string(&log)?;
        ensure!(lines.matches("released").count() == 40, "the log lost lines");
        ensure!(lines.matches("going on").count() > 100, "the other threads did not get on");
    }
    Ok(())
}
