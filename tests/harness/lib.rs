//! What the tests share: devices, processes and checks with real parts.

// What was asked for by environment variables.
pub mod asked;
// Loop devices on temporary files.
pub mod loop_device;
// File systems on them.
pub mod file_system;
// Hosts in network namespaces.
pub mod network;
// A whole installation as processes.
pub mod site;
// A clock that is ahead, for one program.
pub mod stepped_clock;
// A machine with protected disks.
pub mod protected;
// A guest of one sector.
pub mod boot_sector;
// Many small machines with one coordinator.
pub mod crowd;
// A PostgreSQL server and its load.
pub mod postgres;
// Writers under whose load points are made.
pub mod load;
// A disk in memory behind the view contract.
pub mod memory_view;
// Disks with a system on them.
pub mod system_disk;
// Registry hives.
pub mod hive;
// Disks with a Windows on them.
pub mod windows_disk;
// Programs of the system, run and checked.
pub mod program;
// Debian machines in QEMU.
pub mod guest;
// An agent and a database inside them.
pub mod inside;
// Writers on raw devices, and the replica that follows them.
pub mod raw_writers;
// A file whose reads, writes and syncs a test decides upon.
mod fuse_disk;
// A disk whose writes arrive late.
pub mod delayed_disk;
// A disk that loses what it has not flushed.
pub mod volatile_disk;
// A bad network between two ends.
pub mod relay;
// Both ends of the transport, registry and store in memory.
pub mod transport;
// Frames and disks for tests of the journal.
pub mod journal;
// One sample of everything that is sent besides frames.
pub mod samples;
// The kinds of files that live on.
pub mod file_kinds;
// Every decoder, for fuzzing and mutation tests.
pub mod decoders;
// A disk's history, written straight through the store.
pub mod history;
