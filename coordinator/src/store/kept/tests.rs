//! The record of what is kept: its arithmetic against a plain set, its bytes, and its two files.

use std::collections::BTreeSet;

use holdfast_common::ids::Sequence;
use proptest::prelude::{prop, prop_assert_eq, proptest};

use super::{Kept, KeptFile, NeededCuts};

fn needed(horizon: u64, cuts: &[u64]) -> NeededCuts {
    NeededCuts { horizon: Sequence(horizon), cuts: cuts.iter().copied().map(Sequence).collect() }
}

proptest! {
    #[test]
    fn stretches_are_as_a_plain_set(
        rounds in prop::collection::vec(prop::collection::vec(0u64..80, 0..20), 0..6),
        first in 0u64..80, count in 0u64..40,
    ) {
        let mut kept = Kept::default().with(needed(9, &[3, 9]), Vec::new());
        let mut plain = BTreeSet::new();
        for round in rounds {
            kept = kept.with(needed(9, &[3, 9]), round.iter().copied().map(Sequence).collect());
            plain.extend(round);
        }
        for frame in 0..130 {
            prop_assert_eq!(kept.is_gone(Sequence(frame)), plain.contains(&frame));
        }
        let last = first + count;
        let wanted: BTreeSet<u64> =
            kept.wanted(Sequence(first), Sequence(last)).into_iter().flat_map(|(from, to)| from.0..=to.0).collect();
        prop_assert_eq!(wanted, (first..=last).filter(|frame| !plain.contains(frame)).collect::<BTreeSet<_>>());
        prop_assert_eq!(kept.gone_in(Sequence(first), Sequence(last)), plain.range(first..=last).count() as u64);
        let shorter = kept.up_to(Sequence(first));
        prop_assert_eq!(shorter.needed(), &if first < 9 {
            needed(first, if first < 3 { &[] } else { &[3] })
        } else {
            needed(9, &[3, 9])
        });
        for frame in 0..130 {
            prop_assert_eq!(shorter.is_gone(Sequence(frame)), frame <= first && plain.contains(&frame));
        }
        prop_assert_eq!(Kept::parse(&kept.to_bytes()), Ok(kept));
    }

    #[test]
    fn any_bytes_are_read_or_refused(mut body in prop::collection::vec(0u8.., 0..60), cut in 0usize..60) {
        let whole = Kept::default().with(needed(300, &[7, 300]), vec![Sequence(u64::MAX - 1), Sequence(5)]).to_bytes();
        prop_assert_eq!(Kept::parse(&whole[..cut.min(whole.len() - 1)]).is_err(), true);
        body.truncate(cut);
        if let Some(kept) = Kept::parse_body(&body) {
            prop_assert_eq!(Kept::parse(&kept.to_bytes()), Ok(kept));
        }
    }
}

#[test]
fn golden_bytes() {
    let kept = Kept::default().with(needed(300, &[7, 300]), [3, 4, 5, 1000].map(Sequence).to_vec());
    let bytes = kept.to_bytes();
    assert_eq!(&bytes[..8], b"HKPT\x01\0\0\0");
    assert_eq!(&bytes[40..], [0xac, 2, 2, 7, 0xa5, 2, 2, 3, 3, 0xe2, 7, 1]);
    assert!(kept.needs_cut(Sequence(7)) && !kept.needs_cut(Sequence(8)) && kept.needs_cut(Sequence(301)));
}

#[test]
fn either_file_is_enough_and_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = || ["kept", "kept.copy"].map(|name| folder.path().join(name));
    let load = || {
        let mut remarks = Vec::new();
        KeptFile::load(paths(), &mut remarks).map(|file| (file, remarks))
    };
    let (file, _) = load().unwrap();
    assert_eq!(*file.now(), Kept::default());
    let kept = Kept::default().with(needed(9, &[9]), vec![Sequence(4)]);
    file.store(kept.clone()).unwrap();
    let good = kept.to_bytes();
    for broken in paths() {
        for damage in [Some(b"HKPT, but no more".as_slice()), None] {
            match damage {
                Some(bytes) => std::fs::write(&broken, bytes).unwrap(),
                None => std::fs::remove_file(&broken).unwrap(),
            }
            let (file, remarks) = load().unwrap();
            assert_eq!(*file.now(), kept);
            assert!(remarks.len() == 1 && remarks[0].contains(&*broken.to_string_lossy()), "{remarks:?}");
            assert_eq!(std::fs::read(&broken).unwrap(), good);
            assert!(load().unwrap().1.is_empty());
        }
    }
    // A crash between the two files leaves the copy as it was before. It must not be what is left when the file goes.
    let [path, copy] = paths();
    std::fs::write(&copy, Kept::default().to_bytes()).unwrap();
    assert!(load().unwrap().1.is_empty());
    std::fs::remove_file(&path).unwrap();
    assert_eq!(*load().unwrap().0.now(), kept);
    for path in paths() {
        std::fs::write(path, b"no").unwrap();
    }
    let error = load().unwrap_err().to_string();
    assert!(error.contains("kept cannot be used: it is cut short"), "{error}");
}
