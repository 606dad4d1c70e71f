//! What the tests share: devices, processes and checks with real parts.

/// Loop devices on temporary files.
pub mod loop_device;
