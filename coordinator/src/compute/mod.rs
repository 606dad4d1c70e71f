//! Compute: what becomes of a view. Served over NBD, or written out as an image.
//!
//! Knows views only, neither where their blocks come from nor jobs. Invariant: what leaves here came out of a
//! `BlockView` unchanged, or is an error for exactly the range that could not be read.

// What failover uses of compute.
pub mod port;
// What failover uses of a hypervisor.
pub mod machines;
// Machines in QEMU.
pub mod vm;
// Writable branches of views.
pub mod branch;
// Views as network block devices.
pub mod nbd;
// Views as image files.
pub mod image;
