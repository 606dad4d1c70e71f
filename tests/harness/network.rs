//! Two hosts on one machine: a network namespace joined to this one by a veth pair.
//!
//! Owns the namespace and the pair, removed on drop. Names carry the process id, so tests do not meet.

use std::{fs, fs::File, os::fd::AsFd as _, path::Path, process::Command, thread};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

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

    /// Address of the inner side.
    #[must_use]
    pub fn inner_address(&self) -> String {
        format!("10.213.{}.2", self.subnet)
    }

    /// Lets packets from inside on to other namespaces, by the host. Each of them needs this, and a route to this side.
    ///
    /// # Errors
    /// The kernel has no such switch.
    pub fn forward(&self) -> Result<()> {
        let switch = Path::new("/proc/sys/net/ipv4/conf").join(&self.outer).join("forwarding");
        fs::write(&switch, "1").with_context(|| switch.display().to_string())?;
        let gateway = self.outer_address();
        run(Command::new("ip").args(["-n", &self.name, "route", "replace", "default", "via", &gateway]))
            .map(drop)
    }

    /// What takes the thread that calls it into the namespace: sockets that it makes from then on stay in there.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn enter(&self) -> Result<impl FnOnce() -> Result<()> + Send + 'static> {
        let place = File::open(Path::new("/run/netns").join(&self.name))?;
        Ok(move || Ok(move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))?))
    }

    /// Runs this on a thread inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the work fails.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = self.enter()?;
        let entered = || {
            enter()?;
            work()
        };
        thread::scope(|scope| scope.spawn(entered).join()).map_err(|_| anyhow!("the work inside panicked"))?
    }

    /// Loses this many of a hundred packets that come in, until it is called again.
    ///
    /// # Errors
    /// nft is missing.
    pub fn lose(&self, percent: u8) -> Result<()> {
        let mut rules = "table inet loss\ndelete table inet loss\n".to_owned();
        if percent > 0 {
            rules += "table inet loss {\nchain arriving {\ntype filter hook input priority 0;\n";
            rules += &format!("numgen random mod 100 < {percent} drop\n}}\n}}\n");
        }
        let inside = ["netns", "exec", &self.name, "nft"];
        run(Command::new("ip").args(inside).arg(&rules)).map(drop)
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
