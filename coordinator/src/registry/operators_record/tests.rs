//! Bytes that stay readable, and what is refused.

use super::*;

fn operator(name: &str, role: Role, revoked_at: Option<i64>) -> OperatorRecord {
    OperatorRecord {
        name: name.to_owned(),
        role,
        hash: [0xab; 32],
        created_at: Timestamp(1),
        expires_at: Timestamp(2),
        revoked_at: revoked_at.map(Timestamp),
    }
}

#[test]
fn what_was_written_comes_back_and_stays_readable() {
    let operators = [operator("anna", Role::Admin, None), operator("bert", Role::Viewer, Some(3))];
    let bytes = serde_json::to_string(&OperatorsRecord::new(&operators)).unwrap();
    let hash = "ab".repeat(32);
    let golden = format!(
        r#"{{"version":1,"operators":[{{"name":"anna","role":"admin","hash":"{hash}","created_at":1,"expires_at":2,"revoked_at":null}},{{"name":"bert","role":"viewer","hash":"{hash}","created_at":1,"expires_at":2,"revoked_at":3}}]}}"#
    );
    assert_eq!(bytes, golden);
    let (changes, strange) = OperatorsRecord::parse(golden.as_bytes()).unwrap().changes();
    assert_eq!(changes, operators.map(Change::PutOperator));
    assert!(strange.is_empty());
}

#[test]
fn newer_versions_are_refused_and_what_makes_no_sense_is_named() {
    let newer = OperatorsRecord::parse(br#"{"version":2,"operators":[],"more":1}"#).unwrap_err();
    assert!(newer.contains("version 2"), "{newer}");
    assert!(OperatorsRecord::parse(b"{}").is_err());
    let strange = br#"{"version":1,"operators":[{"name":"carl","role":"king","hash":"ab","created_at":1,
        "expires_at":2,"revoked_at":null}]}"#;
    assert_eq!(OperatorsRecord::parse(strange).unwrap().changes(), (vec![], vec!["carl".to_owned()]));
}
