//! Encodings against RFC 9669, and labels.

use super::*;
use Register::{R1, R2, R3, R10};

#[test]
fn instructions_are_encoded_as_the_kernel_expects() {
    let mut code = Assembler::default();
    code.load(Width::Four, R2, R1, 8);
    code.store(Width::Eight, R10, -16, R3);
    code.alu(Alu::And, R2, 255);
    code.atomic(Atomic::Exchange, R1, 0, R2);
    code.constant(R1, 0x1122_3344_5566_7788);
    code.exit();
    let code = code.finish().unwrap();
    if cfg!(target_endian = "little") {
        assert_eq!(code[0], [0x61, 0x12, 8, 0, 0, 0, 0, 0]);
        assert_eq!(code[1], [0x7b, 0x3a, 0xf0, 0xff, 0, 0, 0, 0]);
        assert_eq!(code[2], [0x57, 0x02, 0, 0, 255, 0, 0, 0]);
        assert_eq!(code[3], [0xdb, 0x21, 0, 0, 0xe1, 0, 0, 0]);
        assert_eq!(code[4], [0x18, 0x01, 0, 0, 0x88, 0x77, 0x66, 0x55]);
        assert_eq!(code[5], [0, 0, 0, 0, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(code[6], [0x95, 0, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn jumps_reach_forward_and_back() {
    let mut code = Assembler::default();
    let (start, end) = (code.label(), code.label());
    code.place(start);
    code.jump_if(Condition::Equal, R1, 0, end);
    code.jump(start);
    code.place(end);
    code.exit();
    let code = code.finish().unwrap();
    assert_eq!(code[0][2..4], 1_i16.to_ne_bytes());
    assert_eq!(code[1][2..4], (-2_i16).to_ne_bytes());
}

#[test]
fn a_forgotten_label_is_an_error() {
    let mut code = Assembler::default();
    let nowhere = code.label();
    code.jump(nowhere);
    assert!(code.finish().unwrap_err().contains("never placed"));
}
