//! The NBD server against the clients that people use: libnbd's tools, QEMU's, nbdkit and fio.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Shutdown,
    ops::Range,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use holdfast_common::{ids::PointId, units::BlockRange};
use holdfast_coordinator::{
    compute::{
        branch::{Branch, Origin},
        nbd::client::ExportView,
        nbd::server::{DamageSink, ExportHandle, Listening, NbdServer, Settings},
    },
    points::view::{BlockView as _, ViewError},
};
use holdfast_tests::{
    memory_view::MemoryView,
    program::{installed, run, run_ok},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

#[derive(Debug, Default)]
struct Alarms(Mutex<Vec<Range<u64>>>);

impl DamageSink for Alarms {
    fn cannot_read(&self, _export: &str, bytes: Range<u64>, _error: &ViewError) {
        self.0.lock().unwrap().push(bytes);
    }
}

/// A disk being served on a unix socket.
struct Served {
    runtime: Runtime,
    folder: TempDir,
    server: NbdServer,
    view: Arc<MemoryView>,
    alarms: Arc<Alarms>,
    handle: Option<ExportHandle>,
    _listening: Listening,
}

impl Served {
    fn start(view: MemoryView) -> Self {
        let runtime = Runtime::new().unwrap();
        let folder = TempDir::new().unwrap();
        let (view, alarms) = (Arc::new(view), Arc::new(Alarms::default()));
        let alarm: Arc<dyn DamageSink> = alarms.clone();
        let server = NbdServer::new(Settings::default(), alarm);
        let handle = Some(server.export("sda", "a disk", view.clone()).unwrap());
        let guard = runtime.enter();
        let listening = server.listen_unix(&folder.path().join("nbd.sock")).unwrap();
        drop(guard);
        Self { runtime, folder, server, view, alarms, handle, _listening: listening }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd.sock")
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///sda?socket={}", self.socket().display())
    }

    /// A file with the disk's bytes.
    fn plain(&self) -> String {
        let path = self.folder.path().join("plain.raw");
        fs::write(&path, self.view.bytes()).unwrap();
        path.display().to_string()
    }
}

/// QEMU and libnbd write to a branch, in small pieces, in large ones, and from several connections at once.
#[test]
fn clients_write_to_a_branch() {
    if !installed(&["nbdinfo", "nbdcopy", "qemu-io"]) {
        return;
    }
    let served = Served::start(MemoryView::patchy(3, DISK_BYTES));
    let origin = Origin { point: PointId::from_bytes([1; 16]), turn: Some(0) };
    let path = served.folder.path().join("disk.branch");
    let branch = Arc::new(Branch::open(&path, origin, served.view.clone(), "boot").unwrap());
    let _handle = served.server.export_writable("branch", "a branch", branch.clone()).unwrap();
    let uri = format!("nbd+unix:///branch?socket={}", served.socket().display());
    let info: serde_json::Value = serde_json::from_str(&run_ok("nbdinfo", &["--json", &uri])).unwrap();
    let info = &info["exports"][0];
    assert_eq!(info["is_read_only"], false);
    for can in ["can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df"] {
        assert_eq!(info[can], true, "{can}");
    }
    let plain = fs::read(served.plain()).unwrap();
    let mut expected = plain.clone();
    expected[512..5632].fill(0x11);
    expected[1 << 20..(9 << 20) + 512].fill(0x22);
    expected[10 << 20..12 << 20].fill(0);
    expected[(12 << 20) + 1024..13 << 20].fill(0);
    let _text = run_ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-c",
            "write -P 0x11 512 5120",
            "-c",
            "write -f -P 0x22 1M 8389120",
            "-c",
            "write -z -u 10M 2M",
            "-c",
            "discard 12583936 1047552",
            "-c",
            "flush",
            &uri,
        ],
    );
    let copy = served.folder.path().join("copy").display().to_string();
    let _text = run_ok("nbdcopy", &[&uri, &copy]);
    assert!(fs::read(&copy).unwrap() == expected);
    assert!(served.view.bytes() == plain, "the point is as it was");
    // The flush was heard: another boot finds the same.
    let blocks = branch.written();
    let known =
        Branch::open(&path, Origin { turn: None, ..origin }, served.view.clone(), "other boot").unwrap();
    assert_eq!(known.written(), blocks);

    // From four connections.
    let other = MemoryView::patchy(4, DISK_BYTES);
    fs::write(&copy, other.bytes()).unwrap();
    let _text = run_ok("nbdcopy", &["--connections=4", "--flush", &copy, &uri]);
    let mut found = vec![0; DISK_BYTES];
    branch.read(0, &mut found).unwrap();
    assert!(found == other.bytes());
    assert!(run("qemu-io", &["-f", "raw", "-c", "write 0 512", &served.uri()]).status.code() != Some(0));
}

const DISK_BYTES: usize = (24 << 20) + 4096 * 3;

#[test]
fn nbdinfo_sees_the_export_and_its_holes() {
    if !installed(&["nbdinfo"]) {
        return;
    }
    let served = Served::start(MemoryView::patchy(1, DISK_BYTES));
    let _second = served.server.export("sdb", "another", Arc::new(MemoryView::patchy(2, 5000))).unwrap();
    let listed = run_ok("nbdinfo", &["--list", "--json", &served.uri()]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<_> = listed["exports"].as_array().unwrap().iter().map(|e| &e["export-name"]).collect();
    assert_eq!(names, ["sda", "sdb"]);
    let info = run_ok("nbdinfo", &["--json", &served.uri()]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    let export = &info["exports"][0];
    assert_eq!(export["export-size"], DISK_BYTES);
    assert_eq!(export["is_read_only"], true);
    assert_eq!(export["can_multi_conn"], true);
    assert_eq!(export["block_size_preferred"], 65536);
    assert_eq!(export["block_size_maximum"], 33_554_432);
    assert_eq!(export["contexts"][0], "base:allocation");

    let map = run_ok("nbdinfo", &["--map", "--json", &served.uri()]);
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let (mut position, mut data) = (0, 0);
    for extent in map.as_array().unwrap() {
        assert_eq!(extent["offset"], position);
        position += extent["length"].as_u64().unwrap();
        data += if extent["type"] == 0 { extent["length"].as_u64().unwrap() } else { 0 };
    }
    assert_eq!((position, data), (DISK_BYTES as u64, served.view.data_bytes()));
}

#[test]
fn copies_are_identical_whoever_makes_them() {
    if !installed(&["nbdcopy", "qemu-img", "nbdkit"]) {
        return;
    }
    let served = Served::start(MemoryView::patchy(3, DISK_BYTES));
    let copy = served.folder.path().join("copy.raw").display().to_string();
    for size in ["--request-size=4096", "--request-size=33554432"] {
        fs::remove_file(&copy).unwrap_or_default();
        let _text = run_ok("nbdcopy", &["--connections=4", "--requests=16", size, &served.uri(), &copy]);
        assert!(fs::read(&copy).unwrap() == served.view.bytes(), "nbdcopy {size}");
    }
    let _text = run_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.uri(), &copy]);
    assert!(fs::read(&copy).unwrap() == served.view.bytes(), "qemu-img convert");
    let plain = served.plain();
    let _text = run_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", &served.uri(), &plain]);
    // Through nbdkit as a client that speaks on; $uri is its own socket.
    let through = format!("nbdcopy \"$uri\" '{copy}'");
    let uri = format!("uri={}", served.uri());
    fs::remove_file(&copy).unwrap();
    let _text = run_ok("nbdkit", &["-U", "-", "nbd", &uri, "--run", &through]);
    assert!(fs::read(&copy).unwrap() == served.view.bytes(), "nbdkit");
}

#[test]
fn clients_without_structured_replies_are_served() {
    if !installed(&["python3"]) || !run("/usr/bin/python3", &["-c", "import nbd"]).status.success() {
        eprintln!("skipped: python3-libnbd is not installed");
        return;
    }
    let served = Served::start(MemoryView::patchy(4, 40 << 20).with_damage(BlockRange::new(100, 1)));
    let plain = served.plain();
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.set_request_structured_replies(False)\nh.connect_uri('{}')\n\
         p = open('{plain}', 'rb')\n\
         def plain(o, n):\n    p.seek(o)\n    return bytes(p.read(n))\n\
         assert h.pread(32 << 20, 4 << 20) == plain(4 << 20, 32 << 20)\n\
         assert h.pread(100 * 4096, 0) == plain(0, 100 * 4096)\n\
         try:\n    h.pread(4097, 100 * 4096 - 4096)\nexcept nbd.Error as e:\n    assert e.errno == 'EIO', e\n\
         else:\n    raise Exception('damage was served')\n\
         assert h.pread(5, 101 * 4096) == plain(101 * 4096, 5)\n\
         h.set_strict_mode(0)\n\
         try:\n    h.pwrite(b'x' * 5000, 0)\nexcept nbd.Error as e:\n    assert e.errno == 'EPERM', e\n\
         else:\n    raise Exception('a write was taken')\n\
         assert h.pread(5, 0) == plain(0, 5)\nh.shutdown()\n",
        served.uri()
    );
    let _text = run_ok("/usr/bin/python3", &["-c", &script]);
}

#[test]
fn damage_is_an_error_for_exactly_its_range() {
    if !installed(&["qemu-io"]) {
        return;
    }
    let size = 16 << 20;
    let mut view = MemoryView::patchy(5, size);
    for (start, count) in [(300, 2), (1000, 1)] {
        view = view.with_damage(BlockRange::new(start, count));
    }
    let served = Served::start(view);
    let read = |offset: u64, bytes: u64| {
        let command = format!("read {offset} {bytes}");
        run("qemu-io", &["-r", "-f", "raw", "-c", &command, &served.uri()]).status.success()
    };
    assert!(read(0, 300 * 4096));
    assert!(read(302 * 4096, 698 * 4096));
    assert!(read(1001 * 4096, (size - 1001 * 4096) as u64));
    assert!(served.alarms.0.lock().unwrap().is_empty());
    for block in [300, 301, 1000] {
        assert!(!read(block * 4096, 512), "block {block}");
    }
    served.alarms.0.lock().unwrap().clear();
    assert!(!read(0, size as u64));
    let expected = [300 * 4096..302 * 4096, 1000 * 4096..1001 * 4096];
    assert_eq!(*served.alarms.0.lock().unwrap(), expected, "one large read names each damaged range once");
}

#[test]
fn fio_verifies_what_it_reads_at_depth() {
    if !installed(&["fio", "nbdkit"]) {
        return;
    }
    // Fio writes its own pattern into a file first; the view serves that file's bytes.
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("pattern.raw");
    let common = [
        "--name=x",
        "--size=16m",
        "--bs=4k",
        "--rw=randwrite",
        "--verify=crc32c",
        "--randseed=7",
        "--verify_state_save=0",
    ];
    let filename = format!("--filename={}", file.display());
    let mut write = common.to_vec();
    write.extend(["--ioengine=psync", &filename, "--do_verify=0"]);
    let _text = run_ok("fio", &write);
    let served = Served::start(MemoryView::from_bytes(fs::read(&file).unwrap()));
    let uri = format!("--uri={}", served.uri());
    let mut verify = common.to_vec();
    verify.extend(["--ioengine=nbd", &uri, "--iodepth=32", "--verify_only=1", "--thread"]);
    let _text = run_ok("fio", &verify);
}

#[test]
fn an_export_can_be_removed_while_it_is_read() {
    let mut served = Served::start(MemoryView::patchy(6, DISK_BYTES));
    let mut client = negotiated(&served.socket());
    client.write_all(&read_request(1, 0, 4096)).unwrap();
    let mut answer = vec![0; 16 + 4096];
    client.read_exact(&mut answer).unwrap();
    assert!(answer[16..] == served.view.bytes()[..4096]);
    let handle = served.handle.take().unwrap();
    served.runtime.block_on(handle.remove());
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the connection is closed");
    assert_eq!(Arc::strong_count(&served.view), 1, "nobody holds the view any more");
    // The name is free again.
    let _handle = served.server.export("sda", "again", served.view.clone()).unwrap();
    negotiated(&served.socket());
}

#[test]
fn malformed_input_ends_its_connection_only() {
    let served = Served::start(MemoryView::patchy(7, DISK_BYTES));
    let mut good = negotiated(&served.socket());
    for bad in [vec![0xff; 64], vec![0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]] {
        let mut client = UnixStream::connect(served.socket()).unwrap();
        client.write_all(&bad).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap_or_default();
    }
    let mut garbled = negotiated(&served.socket());
    garbled.write_all(&[0xab; 28]).unwrap();
    assert_eq!(garbled.read(&mut [0; 1]).unwrap(), 0);
    good.write_all(&read_request(1, 0, 512)).unwrap();
    good.read_exact(&mut [0; 16 + 512]).unwrap();
}

/// A raw connection past the oldest negotiation.
fn negotiated(socket: &std::path::Path) -> UnixStream {
    let mut client = UnixStream::connect(socket).unwrap();
    client.read_exact(&mut [0; 18]).unwrap();
    client.write_all(&[0, 0, 0, 3]).unwrap();
    client.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\x03sda").unwrap();
    client.read_exact(&mut [0; 10]).unwrap();
    client
}

fn read_request(cookie: u64, offset: u64, bytes: u32) -> Vec<u8> {
    let mut header = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 0];
    header.extend_from_slice(&cookie.to_be_bytes());
    header.extend_from_slice(&offset.to_be_bytes());
    header.extend_from_slice(&bytes.to_be_bytes());
    header
}

#[test]
fn a_client_of_our_own_reads_what_is_served_and_which_parts_are_holes() {
    let served = Served::start(MemoryView::patchy(7, (4 << 20) + 512).with_damage(BlockRange::new(9, 1)));
    assert!(ExportView::open(&served.socket(), "sdb", None).is_err(), "there is no such export");
    assert!(ExportView::open(&served.socket(), "sda", Some("qemu:dirty-bitmap:none")).is_err());
    let view = ExportView::open(&served.socket(), "sda", Some("base:allocation")).unwrap();
    assert_eq!(view.size_bytes(), served.view.size_bytes());
    let mut bytes = vec![0; usize::try_from(view.size_bytes()).unwrap()];
    assert!(view.read(8 * 4096, &mut bytes[..8192]).is_err(), "a damaged block is no bytes");
    // An answer that was an error says nothing of what follows it.
    assert!(view.read(0, &mut bytes[..4096]).is_err());
    let view = ExportView::open(&served.socket(), "sda", Some("base:allocation")).unwrap();
    view.read(10 * 4096, &mut bytes[10 * 4096..]).unwrap();
    assert!(bytes[10 * 4096..] == served.view.bytes()[10 * 4096..]);
    let blocks = view.size_bytes().div_ceil(4096);
    let mut holes = Vec::new();
    let mut at = 0;
    while at < blocks {
        for extent in served.view.extents(BlockRange::new(at, blocks - at)).unwrap() {
            at = extent.range.end().0;
            if extent.hole {
                holes.extend(extent.range.start.0..at);
            }
        }
    }
    let marked: Vec<u64> =
        view.marked().unwrap().iter().flat_map(|range| range.start.0..range.end().0).collect();
    assert!(!holes.is_empty() && marked == holes, "{marked:?} is not {holes:?}");
}
