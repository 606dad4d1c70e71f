//! Files that are read on a bad day only, looked at when the coordinator starts.
//!
//! Owns the look, and what is said of it. Knows what can be made again from the catalog, and nothing else of what is in the
//! files. Invariant: none of them is damaged for longer than until the next start without being named; machines' and operators'
//! records are written anew from the catalog behind this look, plans' copies in it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use serde::de::DeserializeOwned;

use super::{data::DataFolder, logs::Logs, plans::Host};
use crate::{
    api::port::PlanHost as _,
    catalog::Catalog,
    drills,
    readiness::record::ReadinessRecord,
    registry::{Registry, description::Description, operators_record::OperatorsRecord},
    store::{AuditRecord, CheckRecord},
};

/// What becomes of a copy of something that the catalog has.
const FROM_CATALOG: &str = "it is made again from the catalog";

/// Looks at all of them; gives what is wrong, for people.
///
/// # Errors
/// The catalog cannot be read.
pub(super) async fn look(
    data: &DataFolder,
    registry: &Registry,
    logs: &Logs,
    catalog: &Arc<dyn Catalog>,
) -> Result<Vec<String>> {
    let mut remarks = Remarks::default();
    for machine in registry.machines() {
        let name = format!("{}.json", machine.record.id);
        remarks.must(data.machines().join(&name), Description::parse, FROM_CATALOG);
        remarks.may(data.readiness().join(&name), ReadinessRecord::parse, "the machine is looked at again");
        remarks.may(data.drills().join(&name), drills::parse, "what drills have shown is lost; drill again");
    }
    if registry.operators().is_empty() {
        let again = "after a loss of the catalog, operators would have to be made again";
        remarks.may(data.operators(), OperatorsRecord::parse, again);
    } else {
        remarks.must(data.operators(), OperatorsRecord::parse, FROM_CATALOG);
    }
    for log in logs.store.disks() {
        remarks.may(log.layout().checks(), json::<CheckRecord>, "all is checked again");
        remarks.may(
            log.layout().audit(),
            json::<AuditRecord>,
            "comparisons that were made are not known any more",
        );
    }
    let host = Host { folder: data.plans() };
    for plan in catalog.plans().await? {
        let same = |bytes: &[u8]| {
            let same = bytes == plan.text.as_bytes();
            same.then_some(()).ok_or_else(|| "it is not the plan that the catalog has".to_owned())
        };
        if remarks.must(host.path(&plan.name), same, FROM_CATALOG)
            && let Err(error) = host.keep(plan.name.clone(), plan.text.clone()).await
        {
            remarks.say(&host.path(&plan.name), "it cannot be written", &error);
        }
    }
    Ok(remarks.0)
}

#[derive(Debug, Default)]
struct Remarks(Vec<String>);

impl Remarks {
    /// A file that must be there. Gives whether it is damaged.
    fn must<T>(&mut self, path: PathBuf, parse: impl Fn(&[u8]) -> Result<T, String>, then: &str) -> bool {
        let damage = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some("it is missing".to_owned()),
            Err(error) => Some(error.to_string()),
            Ok(bytes) => parse(&bytes).err(),
        };
        damage.iter().for_each(|reason| self.say(&path, reason, then));
        damage.is_some()
    }

    /// A file that need not be there.
    fn may<T>(&mut self, path: PathBuf, parse: impl Fn(&[u8]) -> Result<T, String>, then: &str) {
        if path.exists() {
            self.must(path, parse, then);
        }
    }

    fn say(&mut self, path: &Path, reason: &str, then: &str) {
        let path = path.display();
        tracing::warn!(%path, reason, then, "a file is damaged");
        self.0.push(format!("{path} cannot be used: {reason}; {then}"));
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}
