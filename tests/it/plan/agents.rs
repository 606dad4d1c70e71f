//! Programs of a plan on a host that is no machine of it: one at the target's site, with an agent of its own.

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{crowd::Crowd, loop_device, site::wait_for};

use super::{PATIENCE, Scripts, apply, count, go_on, id, until};

fn walked() -> Result<()> {
    let scripts = Scripts::new()?;
    let place = scripts.folder.path().display().to_string();
    scripts.write("route", &format!("env | grep ^HOLDFAST_ | sort >> {place}/routed; echo $1"))?;
    let mut crowd = Crowd::start(1, "2s", "")?;
    // Enrolled, and nothing of it is protected: it serves plans only.
    let known = crowd.machines.clone();
    let mut host = crowd.site.add_agent_with(&[], &format!("actions = \"{place}\"\n"))?;
    let listed = crowd.site.cli(&["machines"])?;
    let ids = listed.as_array().context("machines")?.iter().filter_map(|machine| machine["id"].as_str());
    let target = ids.filter(|id| !known.iter().any(|of| of == id)).collect::<Vec<_>>().concat();
    let text = |agent: &str| {
        format!(
            "name = \"shop\"\n[[group]]\nname = \"front\"\nmachines = [\"{}\"]\n[[group.after]]\nscript = [\"route\", \"192.0.2.7\"]\n\
             on = \"agent {agent}\"\n",
            known[0]
        )
    };
    let wrong =
        apply(&crowd.site, scripts.folder.path(), &text("nobody")).err().context("nobody was found")?;
    ensure!(wrong.to_string().contains("line 5: "), "{wrong}");
    apply(&crowd.site, scripts.folder.path(), &text(&target))?;

    // The test stops where nobody is there to run it, and goes on when the host is back.
    host.kill()?;
    wait_for("the host to be seen lost", PATIENCE, || {
        let machine = crowd.site.cli(&["status"])?;
        let machines = machine["machines"].as_array().context("machines")?.clone();
        Ok(machines.iter().any(|of| of["id"] == *target && of["connected"] == false).then_some(()))
    })?;
    let job = crowd.site.cli(&["plan", "test-failover", "shop", "--no-wait"])?;
    let held = until(&crowd.site, id(&job), "held")?;
    let expected = format!("route failed on {target}: its agent is not connected");
    ensure!(held["messages"].to_string().contains(&expected), "{held:#}");
    host.start()?;
    wait_for("the host to be back", PATIENCE, || {
        let machine = crowd.site.cli(&["status"])?;
        let machines = machine["machines"].as_array().context("machines")?.clone();
        Ok(machines.iter().any(|of| of["id"] == *target && of["connected"] == true).then_some(()))
    })?;
    let done = go_on(&crowd.site, id(&job), "retry")?;
    ensure!(done["ok"] == true && count(&done, "holding") == 1, "{done:#}");
    ensure!(done["messages"].to_string().contains("route: 192.0.2.7"), "{done:#}");
    let told = scripts.taken("routed");
    for part in [format!("HOLDFAST_MACHINE={}", known[0]), format!("HOLDFAST_DISKS={}/", known[0])] {
        ensure!(told.iter().any(|line| line.starts_with(&part)), "{part} is not in {told:?}");
    }
    crowd.site.cli(&["plan", "test-failover", "shop", "--cleanup"])?;
    crowd.agents.push(host);
    Ok(())
}

#[test]
fn a_script_runs_on_a_host_that_is_named() {
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    walked().unwrap();
}
