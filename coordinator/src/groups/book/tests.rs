//! Making, joining, leaving, and what is refused.

use std::sync::Arc;

use holdfast_common::{
    clock::{Clock, ManualClock, Timestamp},
    entropy::SeededEntropy,
    ids::MachineId,
};

use super::{GroupBook, GroupError, GroupRules};
use crate::catalog::{
    Catalog, Change, SqliteCatalog,
    record::{MachineRecord, MachineState},
};

fn machine(number: u8) -> MachineId {
    MachineId::from_bytes([number; 16])
}

async fn book(folder: &tempfile::TempDir) -> (GroupBook, Arc<dyn Catalog>) {
    let catalog: Arc<dyn Catalog> =
        Arc::new(SqliteCatalog::open(&folder.path().join("catalog.sqlite")).await.unwrap());
    let record = |number| MachineRecord {
        id: machine(number),
        name: format!("web-{number}"),
        state: MachineState::Enrolled,
        enrolled_at: Timestamp(1),
        last_seen_at: None,
        agent_version: String::new(),
        inventory: None,
    };
    catalog.apply((1..=3).map(|number| Change::PutMachine(record(number))).collect()).await.unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let loaded = GroupBook::load(Arc::clone(&catalog), clock, Arc::new(SeededEntropy::new(1))).await;
    (loaded.unwrap(), catalog)
}

#[tokio::test]
async fn machines_join_and_leave_and_a_restart_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let (groups, catalog) = book(&folder).await;
    let made = groups.create("me", "shop", &[machine(1)], GroupRules::default()).await.unwrap();
    assert_eq!((made.record.interval_ms, made.record.wait_ms_max), (10_000, 500));
    let rules = GroupRules { interval_ms: Some(5_000), ..GroupRules::default() };
    groups.add("me", "shop", &[machine(2), machine(1)], rules).await.unwrap();
    let after = groups.remove("me", "shop", &[machine(1)]).await.unwrap();
    assert_eq!(after.members.into_iter().collect::<Vec<_>>(), [machine(2)]);
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::default());
    let again = GroupBook::load(Arc::clone(&catalog), clock, Arc::new(SeededEntropy::new(2))).await.unwrap();
    assert_eq!(again.all(), groups.all());
    assert_eq!(again.of(machine(2)).unwrap().interval().as_secs(), 5);
    assert_eq!(again.of(machine(1)), None);
    assert_eq!(catalog.audit(Timestamp(i64::MIN), 10).await.unwrap().len(), 3);
    again.delete("me", &made.record.id.to_string()).await.unwrap();
    assert_eq!(again.all(), []);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (groups, _catalog) = book(&folder).await;
    groups.create("me", "shop", &[machine(1)], GroupRules::default()).await.unwrap();
    let none = GroupRules::default();
    let taken = groups.create("me", "shop", &[], none).await;
    assert!(matches!(taken, Err(GroupError::Name(_))), "{taken:?}");
    let nameless = groups.create("me", "a b", &[], none).await;
    assert!(matches!(nameless, Err(GroupError::Name(_))), "{nameless:?}");
    let elsewhere = groups.create("me", "bank", &[machine(2), machine(1)], none).await;
    assert!(matches!(elsewhere, Err(GroupError::Elsewhere { group, .. }) if group == "shop"));
    assert_eq!(groups.of(machine(2)), None, "all or nothing");
    let stranger = groups.remove("me", "shop", &[machine(3)]).await;
    assert!(matches!(stranger, Err(GroupError::NoMember { .. })), "{stranger:?}");
    for rules in [
        GroupRules { interval_ms: Some(10), ..none },
        GroupRules { wait_ms_max: Some(60_000), ..none },
        GroupRules { application_interval_ms: Some(1_000), ..none },
    ] {
        let refused = groups.add("me", "shop", &[], rules).await;
        assert!(matches!(refused, Err(GroupError::Setting(_))), "{rules:?}: {refused:?}");
    }
    assert!(matches!(groups.delete("me", "bank").await, Err(GroupError::Unknown(_))));
}
