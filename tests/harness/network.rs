//! Two hosts on one machine: a network namespace joined to this one by a veth pair.
//!
//! Owns the namespace and the pair, removed on drop. Names carry the process id, so tests do not meet.

use std::process::Command;

use anyhow::Result;

use crate::file_system::run;

/// A network namespace with one link to the outside.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    outer: String,
    subnet: u8,
}

impl Namespace {
    /// Makes a namespace. `subnet` tells it from others of this process: the outer end is `10.213.SUBNET.1`, the inner end
    /// `10.213.SUBNET.2`.
    ///
    /// # Errors
    /// No root, or iproute2 is missing.
    pub fn create(subnet: u8) -> Result<Self> {
        let id = std::process::id() % 100_000;
        let name = format!("hf{id}n{subnet}");
        let outer = format!("hf{id}o{subnet}");
        let inner = format!("hf{id}i{subnet}");
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name: name.clone(), outer: outer.clone(), subnet };
        run(Command::new("ip")
            .args(["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &name]))?;
        run(Command::new("ip").args(["addr", "add", &format!("10.213.{subnet}.1/24"), "dev", &outer]))?;
        run(Command::new("ip").args(["link", "set", &outer, "up"]))?;
        let inside = |arguments: &[&str]| run(Command::new("ip").args(["-n", &name]).args(arguments));
        inside(&["addr", "add", &format!("10.213.{subnet}.2/24"), "dev", &inner])?;
        inside(&["link", "set", &inner, "up"])?;
        inside(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Address of this side.
    #[must_use]
    pub fn outer_address(&self) -> String {
        format!("10.213.{}.1", self.subnet)
    }

    /// What a command is put behind to run inside the namespace.
    #[must_use]
    pub fn command_prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Cuts the link, or restores it.
    ///
    /// # Errors
    /// The link is gone.
    pub fn set_link(&self, up: bool) -> Result<()> {
        run(Command::new("ip").args(["link", "set", &self.outer, if up { "up" } else { "down" }])).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Removing the namespace removes both ends of the pair.
        if let Err(error) = run(Command::new("ip").args(["netns", "del", &self.name])) {
            eprintln!("{error:#}");
        }
    }
}
