//! Where the coordinator is, and how to prove who asks.
//!
//! Owns the order in which that is looked up (option or environment, the user's configuration file, the host's, the
//! default), and the user's file, which `holdfast login` writes.
//! Invariant: a token is taken from a file only if nobody else can read it, and is used only for the coordinator that
//! stands beside it.

use std::{
    io::ErrorKind,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use holdfast_common::{durable, token::OperatorToken};
use serde::{Deserialize, Serialize};

use crate::{client::Target, output::Failure};

/// The coordinator's default socket.
const DEFAULT: &str = "/var/lib/holdfast/holdfast.sock";
/// The host's configuration file.
const HOST_FILE: &str = "/etc/holdfast/config.toml";
/// Name of the socket in a data folder.
const SOCKET: &str = "holdfast.sock";
/// How an address on the network begins.
const HTTPS: &str = "https://";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    coordinator: Option<String>,
    token: Option<String>,
}

/// Where to go, from what was given on the command line (or by its environment).
pub(crate) fn target(coordinator: Option<&str>, token: Option<&str>) -> Result<Target, Failure> {
    let mut files = Vec::new();
    for path in user_file().into_iter().chain([PathBuf::from(HOST_FILE)]) {
        files.extend(read(&path)?);
    }
    choose(coordinator, token, &files)
}

/// The rule. Pure but for the look whether a path is a folder.
fn choose(coordinator: Option<&str>, token: Option<&str>, files: &[File]) -> Result<Target, Failure> {
    let configured = files.iter().find(|file| file.coordinator.is_some());
    let default = configured.and_then(|file| file.coordinator.as_deref()).unwrap_or(DEFAULT);
    let given = coordinator.unwrap_or(default);
    let Some(address) = given.strip_prefix(HTTPS) else { return socket_of(given) };
    let address = address.trim_end_matches('/');
    let beside =
        || files.iter().find(|file| file.coordinator.as_deref().is_some_and(|known| same(known, given)));
    let token = token.or_else(|| beside().and_then(|file| file.token.as_deref()));
    let token = token.ok_or_else(|| {
        let message = format!("there is no token for {given}");
        Failure::usage(
            message,
            format!("log in with `holdfast login {address} --token TOKEN`, or set HOLDFAST_TOKEN"),
        )
    })?;
    remote(address, token)
}

/// A coordinator on the network.
pub(crate) fn remote(address: &str, token: &str) -> Result<Target, Failure> {
    let has_port =
        address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !has_port || address.contains('/') {
        let message = format!("`{address}` is no address of a coordinator");
        return Err(Failure::usage(message, "give host and port, for example recovery.example.org:4434"));
    }
    let token: OperatorToken = token.parse().map_err(|error| {
        Failure::usage(
            format!("the token cannot be used: {error}"),
            "an admin makes one with `holdfast operator create`",
        )
    })?;
    Ok(Target::Remote { address: address.to_owned(), token })
}

/// Keeps where the coordinator is and the token for it, for this user.
pub(crate) fn store(address: &str, token: &OperatorToken) -> Result<PathBuf, Failure> {
    let path = user_file().ok_or_else(|| {
        Failure::usage(
            "there is no home folder to keep the login in",
            "set HOME, or use HOLDFAST_TOKEN instead",
        )
    })?;
    let file = File { coordinator: Some(format!("{HTTPS}{address}")), token: Some(token.to_text()) };
    let failed = |error: String| {
        Failure::failed(format!("{} cannot be written: {error}", path.display()), "make its folder writable")
    };
    let text = toml::to_string(&file).map_err(|error| failed(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    durable::replace(&path, text.as_bytes(), durable::MODE_SECRET)
        .map_err(|error| failed(error.to_string()))?;
    Ok(path)
}

/// Forgets the user's login. Gives the file that was removed, if there was one.
pub(crate) fn forget() -> Result<Option<PathBuf>, Failure> {
    let Some(path) = user_file() else { return Ok(None) };
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(Some(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::failed(
            format!("{} cannot be removed: {error}", path.display()),
            "remove it by hand",
        )),
    }
}

fn user_file() -> Option<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    home.map(|folder| folder.join("holdfast/config.toml"))
}

fn same(known: &str, given: &str) -> bool {
    known.trim_end_matches('/') == given.trim_end_matches('/')
}

fn read(path: &Path) -> Result<Option<File>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("the configuration file {} cannot be read: {error}", path.display());
            return Err(Failure::usage(message, "give --coordinator, or make the file readable"));
        }
    };
    let file: File = toml::from_str(&text).map_err(|error| {
        let message = format!("the configuration file {} is wrong: {}", path.display(), error.message());
        let advice = "it has two settings: coordinator = \"/var/lib/holdfast/holdfast.sock\" (or \"https://HOST:PORT\") \
                      and token";
        Failure::usage(message, advice)
    })?;
    let mode = std::fs::metadata(path).map(|metadata| metadata.permissions().mode() & 0o777).unwrap_or(0);
    if file.token.is_some() && mode & 0o077 != 0 {
        let path = path.display();
        let message = format!("others can read the token in {path} (mode {mode:o})");
        let advice = format!(
            "run chmod 600 {path}; if somebody may have seen the token, have it revoked and log in anew"
        );
        return Err(Failure::usage(message, advice));
    }
    Ok(Some(file))
}

fn socket_of(given: &str) -> Result<Target, Failure> {
    if given.contains("://") && !given.starts_with("unix://") {
        let message = format!("`{given}` is no coordinator that can be reached");
        let advice =
            "give the path of its socket or data folder, or https://HOST:PORT (plain http is not spoken)";
        return Err(Failure::usage(message, advice));
    }
    let path = PathBuf::from(given.strip_prefix("unix://").unwrap_or(given));
    Ok(Target::Socket(if path.is_dir() { path.join(SOCKET) } else { path }))
}

#[cfg(test)]
mod tests;
