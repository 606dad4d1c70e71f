//! A protected machine: a coordinator, an agent on this host, and disks with a cut every second.
//!
//! Owns both programs, and ends the agent first. Does not own the disks, which outlive it.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use holdfast_coordinator::quickstart::background::BackgroundWriter;

use crate::{
    file_system::MountedDisk,
    load::check_point,
    site::{Agent, Point, Site},
};

/// How long to wait for what must come.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The programs, and the only machine's id.
#[derive(Debug)]
pub struct Protected {
    /// The agent.
    pub agent: Agent,
    /// The coordinator, and what drives it.
    pub site: Site,
    /// The machine.
    pub machine: String,
}

impl Protected {
    /// A new coordinator and a new agent that protects these devices.
    ///
    /// # Errors
    /// Something does not start, or a device cannot be protected.
    pub fn start(devices: &[&Path]) -> Result<Self> {
        let site = Site::start()?;
        let agent = site.add_agent()?;
        Self::with(site, agent, devices)
    }

    /// The same with a coordinator and an agent that were started otherwise.
    ///
    /// # Errors
    /// There is more than one machine, or a device cannot be protected.
    pub fn with(site: Site, agent: Agent, devices: &[&Path]) -> Result<Self> {
        let machine = site.only_machine()?;
        site.protect(&machine, devices, "1s")?;
        Ok(Self { agent, site, machine })
    }

    /// Waits until there are at least `count` complete points; all of them, oldest first.
    ///
    /// # Errors
    /// They do not come in time.
    pub fn wait_for_points(&self, count: usize) -> Result<Vec<Point>> {
        self.site.wait_for_points(&self.machine, count, PATIENCE)
    }

    /// Complete points, oldest first.
    ///
    /// # Errors
    /// The command fails.
    pub fn points(&self) -> Result<Vec<Point>> {
        self.site.points(&self.machine)
    }

    /// Checks that a point holds a prefix of the writer's history; returns its length.
    ///
    /// # Errors
    /// The point cannot be attached, or holds no prefix.
    pub fn check(&self, point: &Point, disks: &[&MountedDisk], writer: &BackgroundWriter) -> Result<u64> {
        check_point(&self.site, &self.machine, &point.id, disks, writer.schedule())
    }

    /// Waits for a point that is cut from now on, and checks that it holds all that the writer has done by now (and a
    /// prefix of what follows); returns how much.
    ///
    /// # Errors
    /// No point comes in time, or it holds less, or no prefix.
    pub fn next_point_holds(&self, disks: &[&MountedDisk], writer: &BackgroundWriter) -> Result<u64> {
        let before = writer.done();
        let point = self.site.wait_for_new_point(&self.machine, PATIENCE)?;
        let operations = self.check(&point, disks, writer)?;
        ensure!(operations >= before, "a point cut after operation {before} ends at {operations}");
        Ok(operations)
    }
}
