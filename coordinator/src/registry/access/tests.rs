//! Operators' tokens: whose they are, until when, and that a restart changes nothing.

use std::time::Duration;

use holdfast_common::{clock::Timestamp, token::TokenHash};

use super::{Denied, NewOperator, OPERATOR_LIFE_MAX};
use crate::{
    catalog::record::Role,
    registry::{RegistryError, tests::Fixture},
};

fn new(name: &str, secret: u8) -> NewOperator {
    let life = Duration::from_secs(60);
    NewOperator { name: name.to_owned(), role: Role::Operator, hash: TokenHash([secret; 32]), life }
}

#[tokio::test]
async fn a_token_is_its_operators_until_it_is_revoked_also_after_a_restart() {
    let fixture = Fixture::new().await;
    fixture.registry.create_operator("root", new("anna", 1)).await.unwrap();
    fixture.registry.create_operator("root", new("bert", 2)).await.unwrap();
    let fixture = fixture.restarted().await;
    let registry = &fixture.registry;
    assert_eq!(registry.authenticate(TokenHash([2; 32])).unwrap().name, "bert");
    assert_eq!(registry.authenticate(TokenHash([3; 32])), Err(Denied::Unknown));
    registry.revoke_operator("root", "bert").await.unwrap();
    let denied = Denied::Revoked { name: "bert".to_owned() };
    assert_eq!(registry.authenticate(TokenHash([2; 32])), Err(denied.clone()));
    assert_eq!(registry.authenticate(TokenHash([1; 32])).unwrap().role, Role::Operator);
    let fixture = fixture.restarted().await;
    assert_eq!(fixture.registry.authenticate(TokenHash([2; 32])), Err(denied));
}

#[tokio::test]
async fn a_token_expires_and_its_name_may_be_given_again() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    registry.create_operator("root", new("anna", 1)).await.unwrap();
    let taken = registry.create_operator("root", new("anna", 2)).await;
    assert!(matches!(taken, Err(RegistryError::OperatorExists { .. })), "{taken:?}");
    fixture.clock.advance(Duration::from_secs(60));
    let denied = Denied::Expired { name: "anna".to_owned() };
    assert_eq!(registry.authenticate(TokenHash([1; 32])), Err(denied));
    registry.create_operator("root", new("anna", 2)).await.unwrap();
    assert_eq!(registry.authenticate(TokenHash([1; 32])), Err(Denied::Unknown));
    registry.authenticate(TokenHash([2; 32])).unwrap();
}

#[tokio::test]
async fn what_is_unsuitable_is_refused_and_what_is_done_is_in_the_audit() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    for name in ["", "a b", "(uid 0)", "a\nb", &"x".repeat(65)] {
        assert!(registry.create_operator("root", new(name, 1)).await.is_err(), "{name}");
    }
    for life in [Duration::ZERO, OPERATOR_LIFE_MAX + Duration::from_secs(1)] {
        assert!(registry.create_operator("root", NewOperator { life, ..new("anna", 1) }).await.is_err());
    }
    let unknown = registry.revoke_operator("root", "nobody").await;
    assert!(matches!(unknown, Err(RegistryError::OperatorUnknown { .. })), "{unknown:?}");
    registry.create_operator("root", new("anna", 1)).await.unwrap();
    registry.revoke_operator("root", "anna").await.unwrap();
    registry.record_act("operator anna", "failover", "web-1", "latest").await.unwrap();
    let audit = registry.catalog.audit(Timestamp(0), 10).await.unwrap();
    let mut acts: Vec<(&str, &str)> =
        audit.iter().map(|entry| (entry.what.as_str(), entry.who.as_str())).collect();
    acts.sort_unstable();
    assert_eq!(
        acts,
        [("failover", "operator anna"), ("operator create", "root"), ("operator revoke", "root")]
    );
}
