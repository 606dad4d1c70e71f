//! Both ends of the transport over real QUIC on loopback. No root, no devices.

mod enrolment;
mod hostile;
mod raw;
mod sessions;
