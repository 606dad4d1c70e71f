//! The description of our programs' functions, which the kernel wants before it accepts callbacks.
//!
//! Owns a hand-made set of types: one for the main function, one for each function of the program. Does not know what
//! the functions do. Format: BTF (see `btf.rs`), written in the byte order of the machine.

/// Type id of the main function.
pub(super) const MAIN: u32 = 4;
/// Type id of a function with two arguments; `MARK` and `FILL` share one prototype.
pub(super) const MARK: u32 = 6;
/// Type id of the callback of the long loop.
pub(super) const FILL: u32 = 7;

const STRINGS: &[u8] = b"\0u64\0a\0b\0main\0mark\0fill\0";
const NAME_U64: u32 = 1;
const NAME_A: u32 = 5;
const NAME_B: u32 = 7;
const NAME_MAIN: u32 = 9;
const NAME_MARK: u32 = 14;
const NAME_FILL: u32 = 19;

const INTEGER: u32 = 1 << 24;
const POINTER: u32 = 2 << 24;
const FUNCTION: u32 = 12 << 24;
const PROTOTYPE: u32 = 13 << 24;
const GLOBAL: u32 = 1;

/// The types, as bytes for the kernel.
pub(super) fn blob() -> Vec<u8> {
    #[rustfmt::skip]
    let types: &[u32] = &[
        // 1: u64
        NAME_U64, INTEGER, 8, 64,
        // 2: void *
        0, POINTER, 0,
        // 3: u64 (void *a)
        0, PROTOTYPE | 1, 1, NAME_A, 2,
        // 4: main
        NAME_MAIN, FUNCTION | GLOBAL, 3,
        // 5: u64 (u64 a, u64 b)
        0, PROTOTYPE | 2, 1, NAME_A, 1, NAME_B, 1,
        // 6: mark
        NAME_MARK, FUNCTION, 5,
        // 7: fill
        NAME_FILL, FUNCTION, 5,
    ];
    let types_bytes = u32::try_from(types.len() * 4).unwrap_or(0);
    let strings_bytes = u32::try_from(STRINGS.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(24 + types.len() * 4 + STRINGS.len());
    bytes.extend(0xeb9f_u16.to_ne_bytes());
    bytes.extend([1, 0]);
    for value in [24, 0, types_bytes, types_bytes, strings_bytes] {
        bytes.extend(u32::to_ne_bytes(value));
    }
    bytes.extend(types.iter().flat_map(|value| value.to_ne_bytes()));
    bytes.extend(STRINGS);
    bytes
}
