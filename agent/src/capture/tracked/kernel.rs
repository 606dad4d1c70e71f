//! The bpf() system call, and the mount of the file system that keeps its objects.
//!
//! Owns every call of bpf() and the layout of its arguments. Does not know what maps and programs mean.
//! Invariant: every pointer handed to the kernel outlives the call and has the length that is told with it.
//! Limit: the verifier's log is cut at [`LOG_BYTES`].
//! Format: `union bpf_attr` in linux/bpf.h; the offsets are part of the kernel's stable interface.

#![expect(
    unsafe_code,
    reason = "bpf() and mount() have no safe wrapper here; every call of them is in this file"
)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

/// Room for what the verifier says about a refused program.
const LOG_BYTES: usize = 1 << 20;
/// `BPF_PROG_TYPE_TRACING`, attached to a raw tracepoint with typed arguments.
const PROGRAM_TYPE_TRACING: u32 = 26;
const ATTACH_TYPE_RAW_TRACEPOINT: u32 = 23;
const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_FLAG_MMAPABLE: u32 = 0x400;
const STATISTICS_RUN_TIME: u32 = 0;

/// Commands of bpf().
#[derive(Clone, Copy)]
enum Command {
    MapCreate = 0,
    MapUpdate = 2,
    ProgramLoad = 5,
    ObjectPin = 6,
    ObjectGet = 7,
    ObjectInfo = 15,
    RawTracepointOpen = 17,
    TypesLoad = 18,
    MapLookupAndDelete = 21,
    MapLookupBatch = 24,
    EnableStatistics = 32,
}

/// `union bpf_attr`, filled by offset.
#[repr(C, align(8))]
struct Attributes([u8; 144]);

impl Attributes {
    fn new() -> Self {
        Self([0; 144])
    }

    fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        if let Some(field) = self.0.get_mut(offset..offset + bytes.len()) {
            field.copy_from_slice(bytes);
        }
        self
    }

    fn number(self, offset: usize, value: u32) -> Self {
        self.put(offset, &value.to_ne_bytes())
    }

    fn descriptor(self, offset: usize, value: BorrowedFd<'_>) -> Self {
        self.number(offset, value.as_raw_fd().cast_unsigned())
    }

    fn pointer<T>(self, offset: usize, value: *const T) -> Self {
        self.put(offset, &(value.addr() as u64).to_ne_bytes())
    }

    fn read(&self, offset: usize) -> u32 {
        self.0.get(offset..offset + 4).and_then(|four| four.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }
}

/// A program to be loaded.
pub(super) struct Program<'a> {
    /// Shown by tools; at most 15 characters.
    pub(super) name: &'static str,
    pub(super) instructions: &'a [[u8; 8]],
    /// Types of its functions.
    pub(super) types: BorrowedFd<'a>,
    /// For each function: first instruction, type id.
    pub(super) functions: &'a [[u32; 2]],
    /// Id of the typedef of the tracepoint.
    pub(super) attach_to: u32,
}

/// What the kernel counted about a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    pub(super) run_time_ns: u64,
    pub(super) runs: u64,
    pub(super) recursion_misses: u64,
}

/// An array of `values` values of 8 bytes that can be mapped into memory.
pub(super) fn create_array(name: &str, values: u32) -> io::Result<OwnedFd> {
    create_map(name, MAP_TYPE_ARRAY, 4, 8, values, MAP_FLAG_MMAPABLE)
}

/// An array with one value of `bytes` bytes that can be mapped into memory.
pub(super) fn create_record(name: &str, bytes: u32) -> io::Result<OwnedFd> {
    create_map(name, MAP_TYPE_ARRAY, 4, bytes, 1, MAP_FLAG_MMAPABLE)
}

/// A hash map with keys of 8 and values of 16 bytes, allocated in full now.
pub(super) fn create_hash(name: &str, entries: u32) -> io::Result<OwnedFd> {
    create_map(name, MAP_TYPE_HASH, 8, 16, entries, 0)
}

fn create_map(name: &str, kind: u32, key: u32, value: u32, entries: u32, flags: u32) -> io::Result<OwnedFd> {
    let attributes = Attributes::new()
        .number(0, kind)
        .number(4, key)
        .number(8, value)
        .number(12, entries)
        .number(16, flags)
        .put(28, name.as_bytes());
    open(Command::MapCreate, attributes)
}

/// Loads the description of the types of a program's functions.
pub(super) fn load_types(blob: &[u8]) -> io::Result<OwnedFd> {
    let length = u32::try_from(blob.len()).map_err(io::Error::other)?;
    open(Command::TypesLoad, Attributes::new().pointer(0, blob.as_ptr()).number(16, length))
}

/// Loads a program; the verifier's words are in the error if it refuses.
pub(super) fn load_program(program: &Program<'_>) -> io::Result<OwnedFd> {
    // Without a log first: a log that is too small fails a good program.
    let Err(error) = try_load(program, &mut []) else { return try_load(program, &mut []) };
    if matches!(error.raw_os_error(), Some(libc::EPERM)) {
        return Err(error);
    }
    let mut log = vec![0; LOG_BYTES];
    if let Ok(loaded) = try_load(program, &mut log) {
        return Ok(loaded);
    }
    let text: Vec<u8> = log.into_iter().take_while(|&byte| byte != 0).collect();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<_> = text.lines().rev().take(6).collect();
    let last = lines.into_iter().rev().collect::<Vec<_>>().join(" | ");
    Err(io::Error::new(error.kind(), format!("{}: {error}; the verifier says: {last}", program.name)))
}

fn try_load(program: &Program<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let count = |length: usize| u32::try_from(length).map_err(io::Error::other);
    let mut attributes = Attributes::new()
        .number(0, PROGRAM_TYPE_TRACING)
        .number(4, count(program.instructions.len())?)
        .pointer(8, program.instructions.as_ptr())
        .pointer(16, c"GPL".as_ptr())
        .put(48, program.name.as_bytes())
        .number(68, ATTACH_TYPE_RAW_TRACEPOINT)
        .descriptor(72, program.types)
        .number(76, 8)
        .pointer(80, program.functions.as_ptr())
        .number(88, count(program.functions.len())?)
        .number(108, program.attach_to);
    if !log.is_empty() {
        attributes = attributes.number(24, 1).number(28, count(log.len())?).pointer(32, log.as_mut_ptr());
    }
    open(Command::ProgramLoad, attributes)
}

/// Attaches a program to its tracepoint, for as long as the result or a pin of it lives.
pub(super) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open(Command::RawTracepointOpen, Attributes::new().descriptor(8, program))
}

/// Gives an object a name in bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::new().pointer(0, path.as_ptr()).descriptor(8, object);
    call(Command::ObjectPin, &mut attributes).map(|_| ())
}

/// Opens an object by its name in bpffs.
pub(super) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    open(Command::ObjectGet, Attributes::new().pointer(0, path.as_ptr()))
}

/// What the kernel counted about a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut info = [0_u64; 30];
    let bytes = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let mut attributes =
        Attributes::new().descriptor(0, program).number(4, bytes).pointer(8, info.as_mut_ptr());
    call(Command::ObjectInfo, &mut attributes)?;
    let [run_time_ns, runs, recursion_misses] = [24, 25, 26].map(|at| info.get(at).copied().unwrap_or(0));
    Ok(ProgramInfo { run_time_ns, runs, recursion_misses })
}

/// Has the kernel measure the time of programs for as long as the result lives.
pub(super) fn enable_statistics() -> io::Result<OwnedFd> {
    open(Command::EnableStatistics, Attributes::new().number(0, STATISTICS_RUN_TIME))
}

/// All entries of a hash map made by [`create_hash`] with at most `entries` entries. An entry that is in the map
/// during the whole call is among them.
pub(super) fn read_hash(map: BorrowedFd<'_>, entries: usize) -> io::Result<Vec<(u64, [u64; 2])>> {
    let (mut keys, mut values) = (vec![0_u64; entries], vec![[0_u64; 2]; entries]);
    let mut found = Vec::new();
    let (mut batch, mut is_first) = (0_u64, true);
    loop {
        let capacity = u32::try_from(entries).map_err(io::Error::other)?;
        let input = if is_first { std::ptr::null() } else { &raw const batch };
        let mut attributes = Attributes::new()
            .pointer(0, input)
            .pointer(8, &raw mut batch)
            .pointer(16, keys.as_mut_ptr())
            .pointer(24, values.as_mut_ptr())
            .number(32, capacity)
            .descriptor(36, map);
        let outcome = call(Command::MapLookupBatch, &mut attributes);
        let is_last = match outcome {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) => return Err(error),
        };
        let count = attributes.read(32) as usize;
        found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
        if is_last {
            return Ok(found);
        }
        is_first = false;
    }
}

/// Removes an entry of a hash map and returns what it held.
pub(super) fn remove_entry(map: BorrowedFd<'_>, key: u64) -> io::Result<Option<[u64; 2]>> {
    let mut value = [0_u64; 2];
    let mut attributes =
        Attributes::new().descriptor(0, map).pointer(8, &raw const key).pointer(16, value.as_mut_ptr());
    match call(Command::MapLookupAndDelete, &mut attributes) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts an entry into a hash map unless it has one with this key.
pub(super) fn add_entry(map: BorrowedFd<'_>, key: u64, value: [u64; 2]) -> io::Result<()> {
    /// `BPF_NOEXIST`
    const ONLY_NEW: u64 = 1;
    let mut attributes = Attributes::new()
        .descriptor(0, map)
        .pointer(8, &raw const key)
        .pointer(16, value.as_ptr())
        .put(24, &ONLY_NEW.to_ne_bytes());
    match call(Command::MapUpdate, &mut attributes) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(error),
        _ => Ok(()),
    }
}

fn open(command: Command, mut attributes: Attributes) -> io::Result<OwnedFd> {
    let descriptor = call(command, &mut attributes)?;
    // SAFETY: these commands return a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call(command: Command, attributes: &mut Attributes) -> io::Result<i32> {
    loop {
        // SAFETY: the attributes live through the call, and so does what they point to: the callers in this file take
        // every pointer from a value that outlives the call, and tell its true length.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_long,
                &raw mut *attributes,
                size_of::<Attributes>(),
            )
        };
        if let Ok(value @ 0..) = i32::try_from(result) {
            return Ok(value);
        }
        let error = io::Error::last_os_error();
        // Loading is interrupted with EAGAIN when a signal is pending.
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

/// Mounts bpffs at `folder`.
pub(super) fn mount_bpffs(folder: &Path) -> io::Result<()> {
    let target = CString::new(folder.as_os_str().as_bytes())?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: all strings end with a zero and live through the call; bpffs takes no data.
    let result = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, c"mode=0700".as_ptr().cast())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
