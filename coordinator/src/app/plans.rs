//! The coordinator's host as recovery plans need it: programs, bridges, and copies of the plans beside the catalog.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use holdfast_common::{clock::Timestamp, durable};

use crate::{
    api::port::PlanHost,
    catalog::{Change, record::PlanRecord},
    compute::port::BoxFuture,
    failover::plan::read::{PLAN_BYTES_MAX, is_name},
};

/// This host.
#[derive(Debug)]
pub(super) struct Host {
    /// Folder of the copies: `NAME.toml` each.
    pub(super) folder: PathBuf,
}

impl PlanHost for Host {
    fn program(&self, path: &Path) -> Result<(), String> {
        let shown = path.display();
        let found = fs::metadata(path).map_err(|error| format!("{shown} cannot be run here: {error}"))?;
        if !found.is_file() {
            return Err(format!("{shown} is no program"));
        }
        if found.permissions().mode() & 0o111 == 0 {
            return Err(format!("{shown} is not executable; chmod +x {shown}"));
        }
        Ok(())
    }

    fn network(&self, name: &str) -> Result<(), String> {
        let is_bridge = |name: &str| Path::new("/sys/class/net").join(name).join("bridge").exists();
        if is_bridge(name) {
            return Ok(());
        }
        let devices = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let names = devices.filter_map(|device| device.file_name().into_string().ok());
        let bridges: Vec<String> = names.filter(|name| is_bridge(name)).collect();
        let there = if bridges.is_empty() { "none".to_owned() } else { bridges.join(", ") };
        Err(format!(
            "there is no bridge `{name}` on the coordinator's host; there is: {there}, and \"user\", \"isolated\""
        ))
    }

    fn keep(&self, name: String, text: String) -> BoxFuture<'_, Result<(), String>> {
        let (folder, path) = (self.folder.clone(), self.path(&name));
        in_the_background(move || {
            durable::create_folder(&folder)?;
            durable::replace(&path, text.as_bytes(), durable::MODE_PRIVATE)
        })
    }

    fn forget(&self, name: String) -> BoxFuture<'_, Result<(), String>> {
        let path = self.path(&name);
        in_the_background(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        })
    }
}

impl Host {
    /// Where the copy of a plan is.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.toml"))
    }
}

fn in_the_background(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> BoxFuture<'static, Result<(), String>> {
    Box::pin(async move {
        let done = tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
        done.map_err(|error| error.to_string())
    })
}

/// The plans of which there are copies, and what is wrong with others.
pub(super) fn kept(folder: &Path, now: Timestamp) -> (Vec<Change>, Vec<String>) {
    let (mut plans, mut remarks) = (Vec::new(), Vec::new());
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return (plans, remarks),
        Err(error) => {
            remarks.push(format!("the copies of plans in {} cannot be read: {error}", folder.display()));
            return (plans, remarks);
        }
        Ok(entries) => entries,
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.extension().is_none_or(|extension| extension != "toml") || !is_name(&name) {
            continue;
        }
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() > PLAN_BYTES_MAX as u64 => Err("it is too long for a plan".to_owned()),
            Ok(_) => fs::read_to_string(&path).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match text {
            Ok(text) => plans.push(Change::PutPlan(PlanRecord {
                name,
                text,
                changed_at: now,
                changed_by: "coordinator (rebuild)".to_owned(),
            })),
            Err(error) => remarks.push(format!("the plan {} is left out: {error}", path.display())),
        }
    }
    (plans, remarks)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Change, Host, PlanHost as _, Timestamp, kept};

    #[tokio::test]
    async fn copies_come_back_and_strange_files_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host { folder: folder.path().join("plans") };
        assert_eq!(kept(&host.folder, Timestamp(5)), (Vec::new(), Vec::new()));
        host.keep("shop".into(), "name = \"shop\"".into()).await.unwrap();
        host.keep("gone".into(), "name = \"gone\"".into()).await.unwrap();
        for _ in 0..2 {
            host.forget("gone".into()).await.unwrap();
        }
        std::fs::write(host.folder.join("bad.toml"), [0xff]).unwrap();
        let (plans, remarks) = kept(&host.folder, Timestamp(5));
        let [Change::PutPlan(plan)] = plans.as_slice() else { panic!("{plans:?}") };
        assert_eq!((plan.name.as_str(), plan.text.as_str()), ("shop", "name = \"shop\""));
        assert!(remarks.len() == 1 && remarks[0].contains("bad.toml"), "{remarks:?}");
    }

    #[test]
    fn programs_are_looked_at() {
        let host = Host { folder: "/none".into() };
        host.program(Path::new("/bin/sh")).unwrap();
        assert!(host.program(Path::new("/bin/no-such")).unwrap_err().contains("cannot be run"));
        assert!(host.program(Path::new("/etc")).unwrap_err().contains("is no program"));
        let plain = tempfile::NamedTempFile::new().unwrap();
        assert!(host.program(plain.path()).unwrap_err().contains("not executable"));
        assert!(host.network("no-such-bridge").unwrap_err().contains("there is no bridge"));
    }
}
