//! A hand-made set of types, and the running kernel's.

use super::*;

/// A struct `outer { pad:32; union { struct { int deep; }; }; bit:3 }`, a typedef `alias` and a function `alias(int, int)`.
fn sample() -> Vec<u8> {
    let strings = b"\0outer\0deep\0alias\0int\0bit\0";
    let (outer, deep, alias, int, bit) = (1, 7, 12, 18, 22);
    let types: Vec<u32> = vec![
        // 1: int
        int,
        1 << 24,
        4,
        32,
        // 2: struct { int deep; } at bit 32 of itself
        0,
        4 << 24 | 1,
        8,
        deep,
        1,
        32,
        // 3: union { struct 2; }
        0,
        5 << 24 | 1,
        8,
        0,
        2,
        0,
        // 4: struct outer with bit fields: union at 32, bit:3 at 96
        outer,
        1 << 31 | 4 << 24 | 2,
        16,
        0,
        3,
        32,
        bit,
        1,
        3 << 24 | 96,
        // 5: typedef
        alias,
        8 << 24,
        1,
        // 6: prototype with two parameters without names
        0,
        13 << 24 | 2,
        0,
        0,
        1,
        0,
        1,
        // 7: function
        alias,
        12 << 24,
        6,
    ];
    let mut bytes = vec![];
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([1, 0]);
    let types_bytes = u32::try_from(types.len() * 4).unwrap();
    for value in [24, 0, types_bytes, types_bytes, u32::try_from(strings.len()).unwrap()] {
        bytes.extend(u32::to_ne_bytes(value));
    }
    types.iter().for_each(|value| bytes.extend(value.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}

#[test]
fn members_are_found_through_anonymous_ones() {
    let types = KernelTypes::parse(sample()).unwrap();
    assert_eq!(types.offset("outer", "deep").unwrap(), 8);
    assert_eq!(types.typedef("alias").unwrap(), 5);
}

#[test]
fn parameters_of_functions_are_counted() {
    let types = KernelTypes::parse(sample()).unwrap();
    assert_eq!(types.parameters("alias"), Some(2));
    assert_eq!(types.parameters("outer"), None);
}

#[test]
fn what_is_missing_is_named() {
    let types = KernelTypes::parse(sample()).unwrap();
    let text = types.offset("outer", "bit").unwrap_err().to_string();
    assert!(text.contains("`outer`") && text.contains("`bit`"), "{text}");
    assert!(matches!(types.typedef("outer"), Err(BtfError::TypeMissing(_))));
}

#[test]
fn damaged_bytes_are_refused_without_panic() {
    let whole = sample();
    for length in 0..whole.len() {
        let _ = KernelTypes::parse(whole[..length].to_vec())
            .map(|types| (types.offset("outer", "deep"), types.parameters("alias")));
    }
    for position in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[position] ^= 0xff;
        let _ =
            KernelTypes::parse(bytes).map(|types| (types.offset("outer", "deep"), types.parameters("alias")));
    }
}

/// An anonymous member of no type, and offsets that add up to more than 32 bits.
#[test]
fn senseless_members_are_not_found() {
    let sound = sample();
    let (member_type, member_place) = (24 + 4 * 14, 24 + 4 * 15);
    for (at, value) in [(member_type, 0_u32), (member_place, u32::MAX)] {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        let types = KernelTypes::parse(bytes).unwrap();
        assert!(types.offset("outer", "deep").is_err(), "word at {at}");
    }
}

#[test]
fn the_running_kernel_has_what_the_programs_need() {
    let Ok(types) = KernelTypes::of_this_kernel() else {
        eprintln!("skipped: this kernel shows no {BTF_PATH}");
        return;
    };
    assert!(types.offset("request", "__sector").unwrap() > 0);
    assert!(types.offset("bvec_iter", "bi_size").unwrap() > 0);
    assert!(types.typedef("btf_trace_block_rq_issue").unwrap() > 0);
}
