//! Where the coordinator is.
//!
//! Owns the order in which that is looked up: option or environment, the user's configuration file, the host's, the
//! default.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::output::Failure;

/// The coordinator's default socket.
const DEFAULT: &str = "/var/lib/holdfast/holdfast.sock";
/// The host's configuration file.
const HOST_FILE: &str = "/etc/holdfast/config.toml";
/// Name of the socket in a data folder.
const SOCKET: &str = "holdfast.sock";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    coordinator: Option<String>,
}

/// Path of the coordinator's socket.
pub(crate) fn address(given: Option<&str>) -> Result<PathBuf, Failure> {
    if let Some(given) = given {
        return socket_of(given);
    }
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    let user = home.map(|folder| folder.join("holdfast/config.toml"));
    for path in user.into_iter().chain([PathBuf::from(HOST_FILE)]) {
        if let Some(found) = read(&path)? {
            return socket_of(&found);
        }
    }
    Ok(PathBuf::from(DEFAULT))
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("the configuration file {} cannot be read: {error}", path.display());
            return Err(Failure::usage(message, "give --coordinator, or make the file readable"));
        }
    };
    let file: File = toml::from_str(&text).map_err(|error| {
        let message = format!("the configuration file {} is wrong: {}", path.display(), error.message());
        Failure::usage(message, "it has one setting: coordinator = \"/var/lib/holdfast/holdfast.sock\"")
    })?;
    Ok(file.coordinator)
}

fn socket_of(given: &str) -> Result<PathBuf, Failure> {
    if given.contains("://") && !given.starts_with("unix://") {
        let message = format!("`{given}` is no path: coordinators are reached over their unix socket only");
        let advice = "run holdfast on the coordinator's host, or forward the socket: \
                      ssh -L /tmp/holdfast.sock:/var/lib/holdfast/holdfast.sock HOST";
        return Err(Failure::usage(message, advice));
    }
    let path = PathBuf::from(given.strip_prefix("unix://").unwrap_or(given));
    Ok(if path.is_dir() { path.join(SOCKET) } else { path })
}
