//! Decoders on hand-made bytes; whole disks are looked at by the tests with real tools.

use super::{
    bytes::number,
    fstab::lines,
    initramfs::{self, module},
    table,
};

#[test]
fn numbers_are_little_endian_and_bounded() {
    assert_eq!(number(&[1, 2, 0, 0], 0..4), 513);
    assert_eq!((number(&[1], 0..4), number(&[9; 8], 0..8)), (0, 0x0909_0909_0909_0909));
}

#[test]
fn modules_are_known_by_their_files() {
    let names =
        ["kernel/a/virtio_blk.ko", "b/sd-mod.ko.xz", "c.ko.zst", "d.ko.txt", "e.so", "modules.builtin"];
    let found: Vec<Option<String>> = names.into_iter().map(module).collect();
    let expected = [Some("virtio_blk"), Some("sd_mod"), Some("c"), None, None, None];
    assert_eq!(found, expected.map(|name| name.map(str::to_owned)));
}

#[test]
fn fstab_lines_say_what_the_boot_waits_for() {
    let text = "# /dev/sda1 / ext4\nUUID=1 / ext4 defaults 0 1\nUUID=2 none swap sw 0 0\nUUID=3 /x ext4 noatime,nofail\nshort\n";
    let found: Vec<(String, bool)> = lines(text).into_iter().map(|line| (line.spec, line.may_fail)).collect();
    let expected = [("UUID=1", false), ("UUID=2", true), ("UUID=3", true)];
    assert_eq!(found, expected.map(|(spec, may_fail)| (spec.to_owned(), may_fail)));
}

#[test]
fn a_chain_of_logical_partitions_that_bites_its_tail_ends() {
    let mut disk = vec![0_u8; 4096];
    let mut entry =
        |at: usize, kind: u8, first: u8| (disk[at + 4], disk[at + 8], disk[at + 12]) = (kind, first, 1);
    entry(446, 0x05, 2);
    entry(1024 + 446, 0x83, 1);
    // The next one is the first one.
    entry(1024 + 462, 0x05, 0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    let error = table::read(&disk.as_slice()).unwrap_err();
    assert!(error.contains("no end"), "{error}");
}

#[test]
fn an_initramfs_that_unpacks_without_an_end_is_given_up() {
    // A head that claims four GiB of content, and nothing behind it.
    let mut head = b"070701".to_vec();
    for field in [0, 0, 0, 0, 1, 0, 0xffff_ffff_u32, 0, 0, 0, 0, 2, 0] {
        head.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    head.extend_from_slice(b"a\0");
    let error = initramfs::modules(&head).unwrap_err();
    assert!(error.contains("middle of a file"), "{error}");
    assert!(initramfs::modules(&[0; 512]).is_err() && initramfs::modules(b"").is_err());
}
