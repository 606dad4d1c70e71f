//! Deaths and stops while writes are held: whoever dies, the file systems are writable again.

use std::{env, fs, time::Duration};

use anyhow::{Result, ensure};
use holdfast_agent::capture::freeze::{FreezeError, Freezer};
use holdfast_tests::file_system::{Kind, MountedDisk};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    BOUND, MIB, Stacked,
    helper::{Holder, alone, becomes, disk_device, is_frozen, settings},
};

const RCU_EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// The bound of holds that a death must end, far beyond what the tests wait.
const FOR_EVER: Duration = Duration::from_secs(3600);

fn rcu_expedited() -> String {
    fs::read_to_string(RCU_EXPEDITED).unwrap_or_default().trim().to_owned()
}

fn kill(process: i32) -> Result<()> {
    let process = Pid::from_raw(process).ok_or_else(|| anyhow::anyhow!("no process number"))?;
    Ok(kill_process(process, Signal::KILL)?)
}

/// Other tests may hold at the same time; ours is over when the switch is down at some moment.
fn switch_is_down_again() -> bool {
    becomes(|| rcu_expedited() == "0")
}

#[test]
fn a_killed_holder_leaves_nothing_frozen_and_the_switch_as_it_was() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    for kind in [Kind::Ext4, Kind::Xfs] {
        let disk = MountedDisk::create(kind, 320 * MIB)?;
        let holder = Holder::start("holder", &env::current_exe()?, &[&disk.device], FOR_EVER, |_| ())?;
        ensure!(is_frozen(disk.folder()), "not frozen while held");
        ensure!(rcu_expedited() != "0", "the switch is not raised while held");
        drop(holder);
        ensure!(becomes(|| !is_frozen(disk.folder())), "{kind:?} stayed frozen after the holder's death");
        ensure!(switch_is_down_again(), "the switch stayed at {}", rcu_expedited());
        fs::write(disk.folder().join("after"), b"written")?;
    }
    Ok(())
}

#[test]
fn a_killed_holder_of_stacked_file_systems_leaves_nothing_frozen() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    let stacked = Stacked::create()?;
    let disks = [&stacked.outer.device];
    let holder = Holder::start("holder", &env::current_exe()?, &disks, FOR_EVER, |_| ())?;
    ensure!(
        is_frozen(stacked.inner_mount.folder()) && is_frozen(stacked.outer.folder()),
        "not frozen while held"
    );
    drop(holder);
    ensure!(becomes(|| !is_frozen(stacked.outer.folder())), "the carrying file system stayed frozen");
    ensure!(becomes(|| !is_frozen(stacked.inner_mount.folder())), "the carried file system stayed frozen");
    Ok(())
}

#[test]
fn a_stopped_holder_is_overruled_at_its_bound() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let bound = Duration::from_millis(1500);
    let mut holder = Holder::start("holder", &env::current_exe()?, &[&disk.device], bound, |cmd| {
        cmd.stderr(std::process::Stdio::inherit());
    })?;
    holder.stop()?;
    let thawed = becomes(|| !is_frozen(disk.folder()));
    holder.signal(Signal::CONT)?;
    ensure!(thawed, "still frozen long after the bound");
    ensure!(holder.line_with("void: ")?.contains("over the bound"), "the holder did not notice");
    Ok(())
}

#[test]
fn a_killed_guardian_is_noticed_thawed_and_replaced() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let guardian = freezer.guardian_process_id();
    let plan = freezer.plan(&[disk_device(&disk.device)?])?;
    let hold = freezer.hold(&plan, FOR_EVER)?;
    hold.check()?;
    kill(i32::try_from(guardian)?)?;
    // Without any help of the thread that holds.
    ensure!(becomes(|| !is_frozen(disk.folder())), "still frozen after the guardian's death");
    ensure!(matches!(hold.check(), Err(FreezeError::GuardianLost { .. })), "the loss was not noticed");
    let error = hold.release().expect_err("a hold without a guardian must be void");
    ensure!(matches!(error, FreezeError::GuardianLost { .. }), "{error:?}");
    freezer.hold(&plan, BOUND)?.release()?;
    ensure!(freezer.guardian_process_id() != guardian, "no new guardian");
    Ok(())
}

#[test]
fn a_guardian_that_died_between_holds_is_replaced() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let mut freezer = Freezer::start(settings()?)?;
    let guardian = freezer.guardian_process_id();
    let plan = freezer.plan(&[disk_device(&disk.device)?])?;
    kill(i32::try_from(guardian)?)?;
    // The first hold after the death may still meet the dead guardian; then it is void, never silently unguarded.
    ensure!(
        becomes(|| freezer.hold(&plan, BOUND).and_then(|hold| hold.release()).is_ok()),
        "no hold succeeds"
    );
    ensure!(freezer.guardian_process_id() != guardian, "no new guardian");
    ensure!(!is_frozen(disk.folder()), "left frozen");
    Ok(())
}

#[test]
fn when_both_are_killed_the_next_start_thaws() -> Result<()> {
    let Some(_alone) = alone() else { return Ok(()) };
    if rcu_expedited().is_empty() {
        eprintln!("skipped: {RCU_EXPEDITED} is missing");
        return Ok(());
    }
    let disk = MountedDisk::create(Kind::Ext4, 64 * MIB)?;
    let holder = Holder::start("holder", &env::current_exe()?, &[&disk.device], FOR_EVER, |_| ())?;
    // Stopped first, or the holder would notice the guardian's death and thaw.
    holder.stop()?;
    kill(holder.guardian)?;
    drop(holder);
    ensure!(is_frozen(disk.folder()), "nothing was left to clean up");
    let freezer = Freezer::start(settings()?)?;
    ensure!(!is_frozen(disk.folder()), "the next start left it frozen");
    ensure!(switch_is_down_again(), "the switch stayed at {}", rcu_expedited());
    drop(freezer);
    Ok(())
}
