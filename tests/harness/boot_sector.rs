//! The smallest guest there is: a boot sector that says a line at the serial console and stops. A real machine boots it in about a
//! second on an emulated processor, so tests about running many machines need no system on their disks.

/// Bytes of a boot sector.
pub const BOOT_SECTOR_BYTES: usize = 512;

/// A boot sector that prints this, at most 400 bytes without a zero.
///
/// # Panics
/// The text is longer.
#[must_use]
pub fn boot_sector(text: &str) -> [u8; BOOT_SECTOR_BYTES] {
    // 16 bit code at 0x7c00; the text follows it.
    const CODE: [u8; 22] = [
        0x31, 0xc0, //             xor ax, ax
        0x8e, 0xd8, //             mov ds, ax
        0xfc, //                   cld
        0xbe, 0x16, 0x7c, //       mov si, 0x7c16
        0xba, 0xf8, 0x03, //       mov dx, 0x3f8      (the first serial port)
        0xac, //             next: lodsb
        0x84, 0xc0, //             test al, al
        0x74, 0x03, //             jz stop
        0xee, //                   out dx, al
        0xeb, 0xf8, //             jmp next
        0xf4, //             stop: hlt
        0xeb, 0xfd, //             jmp stop
    ];
    assert!(text.len() <= 400, "the text does not fit");
    let mut sector = [0; BOOT_SECTOR_BYTES];
    sector[..CODE.len()].copy_from_slice(&CODE);
    sector[CODE.len()..CODE.len() + text.len()].copy_from_slice(text.as_bytes());
    sector[BOOT_SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
