//! The smallest guests there are: a boot sector that says a line at the serial console and stops, and one that counts its starts
//! on its disk and switches itself off when its power button is pressed. A real machine boots them in about a second on an
//! emulated processor, so tests about running many machines need no system on their disks.

/// Bytes of a boot sector.
pub const BOOT_SECTOR_BYTES: usize = 512;
/// What a hardware file says for machines with such a disk.
pub const HARDWARE: &str =
    "processors = 1\nmemory_mib = 64\ncpu = \"Westmere\"\ndisk_model = \"ide\"\nfirmware = \"bios\"\n";
/// Where [`counting_boot_sector`] counts: a number of 32 bits, little-endian.
pub const COUNTER_OFFSET: u64 = 1 << 20;

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
    assembled(&CODE, text)
}

/// A boot sector that adds one to the number at [`COUNTER_OFFSET`], prints this, at most 400 bytes without a zero, and waits for the
/// power button. Needs a disk that the BIOS knows, of more than 1 MiB, and a chipset of QEMU's (`pc` or `q35`).
///
/// # Panics
/// The text is longer.
#[must_use]
pub fn counting_boot_sector(text: &str) -> [u8; BOOT_SECTOR_BYTES] {
    // 16 bit code at 0x7c00; the request to the BIOS and the text follow it. The BIOS leaves the disk's number in dl, and has put
    // the registers of power management at 0x600.
    #[rustfmt::skip]
    const CODE: [u8; 88] = [
        0x31, 0xc0, //                         xor ax, ax
        0x8e, 0xd8, //                         mov ds, ax
        0x8e, 0xd0, //                         mov ss, ax
        0xbc, 0x00, 0x7c, //                   mov sp, 0x7c00
        0xfc, //                               cld
        0xbe, 0x48, 0x7c, //                   mov si, request
        0xb4, 0x42, //                         mov ah, 0x42            (read)
        0xcd, 0x13, //                         int 0x13
        0x66, 0xff, 0x06, 0x00, 0x7e, //       inc dword [0x7e00]
        0xbe, 0x48, 0x7c, //                   mov si, request
        0xb8, 0x00, 0x43, //                   mov ax, 0x4300          (write)
        0xcd, 0x13, //                         int 0x13
        0xbe, 0x58, 0x7c, //                   mov si, text
        0xba, 0xf8, 0x03, //                   mov dx, 0x3f8           (the first serial port)
        0xac, //                         next: lodsb
        0x84, 0xc0, //                         test al, al
        0x74, 0x03, //                         jz said
        0xee, //                               out dx, al
        0xeb, 0xf8, //                         jmp next
        0xba, 0x02, 0x06, //             said: mov dx, 0x602           (which events are told of)
        0xb8, 0x00, 0x01, //                   mov ax, 0x100           (the power button)
        0xef, //                               out dx, ax
        0xba, 0x00, 0x06, //                   mov dx, 0x600           (which have happened)
        0xfb, //                         wait: sti
        0xf4, //                               hlt                     (until the next tick)
        0xed, //                               in ax, dx
        0xf6, 0xc4, 0x01, //                   test ah, 1
        0x74, 0xf8, //                         jz wait
        0xba, 0x04, 0x06, //                   mov dx, 0x604           (the state of sleep)
        0xb8, 0x00, 0x20, //                   mov ax, 0x2000          (off)
        0xef, //                               out dx, ax
        0xf4, //                          end: hlt
        0xeb, 0xfd, //                         jmp end
        // request: 16 bytes, 1 sector, to 0000:7e00, from sector 2048 on
        0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 0x00, 0x08, 0, 0, 0, 0, 0, 0,
    ];
    assembled(&CODE, text)
}

fn assembled(code: &[u8], text: &str) -> [u8; BOOT_SECTOR_BYTES] {
    assert!(text.len() <= 400, "the text does not fit");
    let mut sector = [0; BOOT_SECTOR_BYTES];
    sector[..code.len()].copy_from_slice(code);
    sector[code.len()..code.len() + text.len()].copy_from_slice(text.as_bytes());
    sector[BOOT_SECTOR_BYTES - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}
