//! The CA: what it writes into certificates, and what it does with damaged files.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use holdfast_common::{
    clock::{Clock as _, ManualClock, Timestamp},
    entropy::{Entropy as _, SeededEntropy},
    ids::MachineId,
    tls::{MachineKey, PeerIdentity},
};

use super::{Authority, AuthorityError, COORDINATOR_LIFE};

const DAY: Duration = Duration::from_hours(24);

fn clock() -> ManualClock {
    let clock = ManualClock::default();
    clock.step_wall(Timestamp(1_800_000_000_123_456));
    clock
}

fn open(folder: &Path, clock: &ManualClock) -> Result<Authority, AuthorityError> {
    Authority::open(folder, 7 * DAY, Arc::new(clock.clone()), Arc::new(SeededEntropy::new(1)))
}

#[test]
fn a_machine_gets_the_name_and_the_life_that_we_decide() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let authority = open(folder.path(), &clock).unwrap();
    let entropy = SeededEntropy::new(2);
    let machine = MachineId(entropy.uuid(clock.wall()));
    let key = MachineKey::generate(&entropy).unwrap();
    let signed = authority.sign_machine(machine, &key.request_der().unwrap()).unwrap();
    let identity = PeerIdentity::of(&signed.der).unwrap();
    assert_eq!(identity.machine, machine);
    assert_eq!(identity.serial, signed.record.serial.0);
    assert_eq!(identity.not_after, signed.record.not_after);
    assert_eq!(identity.not_before, signed.record.not_before);
    assert_eq!(signed.record.not_after, Timestamp(1_800_000_000_000_000).plus(7 * DAY));
}

#[test]
fn a_request_that_is_not_signed_by_its_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), &clock()).unwrap();
    let key = MachineKey::generate(&SeededEntropy::new(3)).unwrap();
    let mut request = key.request_der().unwrap();
    *request.last_mut().unwrap() ^= 1;
    let machine = MachineId::from_bytes([1; 16]);
    assert!(matches!(authority.sign_machine(machine, &request), Err(AuthorityError::Request(_))));
    assert!(matches!(authority.sign_machine(machine, &[0; 5000]), Err(AuthorityError::Request(_))));
}

#[test]
fn the_same_files_are_the_same_authority() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), &clock()).unwrap().fingerprint();
    assert_eq!(open(folder.path(), &clock()).unwrap().fingerprint(), first);
    let mode = fs::metadata(folder.path().join("authority.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn wrong_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), &clock()).unwrap();
    let key = folder.path().join("authority.key");
    let text = fs::read(&key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(open(folder.path(), &clock()), Err(AuthorityError::Exposed { mode: 0o644, .. })));
    fs::remove_file(&key).unwrap();
    assert!(matches!(open(folder.path(), &clock()), Err(AuthorityError::KeyMissing { .. })));
    fs::write(&key, &text[..text.len() / 2]).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(open(folder.path(), &clock()), Err(AuthorityError::Damaged { .. })));
    let other = MachineKey::generate(&SeededEntropy::new(9)).unwrap().into_pair().serialize_pem();
    fs::write(&key, other).unwrap();
    assert!(matches!(open(folder.path(), &clock()), Err(AuthorityError::Damaged { .. })));
}

#[test]
fn a_flipped_bit_never_makes_another_authority() {
    let folder = tempfile::tempdir().unwrap();
    let fingerprint = open(folder.path(), &clock()).unwrap().fingerprint();
    let path = folder.path().join("authority.crt");
    let good = fs::read(&path).unwrap();
    let mut refused = 0;
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        match open(folder.path(), &clock()) {
            Ok(authority) => assert_eq!(authority.fingerprint(), fingerprint, "bit {bit}"),
            Err(error) => {
                assert!(error.to_string().contains("authority.crt cannot be used"), "bit {bit}: {error}");
                refused += 1;
            }
        }
    }
    assert!(refused > good.len() * 6, "only {refused} of {} bits mattered", good.len() * 8);
    fs::remove_file(&path).unwrap();
    let error = Authority::check_whole(folder.path()).unwrap_err().to_string();
    assert!(error.contains("authority.crt is missing"), "{error}");
}

#[test]
fn the_own_certificate_renews_itself() {
    let folder = tempfile::tempdir().unwrap();
    let clock = clock();
    let authority = open(folder.path(), &clock).unwrap();
    let first = authority.own_certificate().unwrap();
    clock.advance(COORDINATOR_LIFE / 2);
    assert!(Arc::ptr_eq(&first, &authority.own_certificate().unwrap()));
    clock.advance(COORDINATOR_LIFE / 4);
    assert!(!Arc::ptr_eq(&first, &authority.own_certificate().unwrap()));
}
