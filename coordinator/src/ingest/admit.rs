//! Admission: who is this, going by the certificate?
//!
//! Owns the reading of a verified client certificate. Pure; whether the machine is known and the serial not revoked is asked of
//! [`super::port::Directory::admit`] afterwards.

use holdfast_common::{
    clock::Timestamp,
    ids::MachineId,
    tls::PeerIdentity,
    wire::{Refusal, RefusalCode},
};

use super::port::CertificateSerial;

/// The machine and the serial of a client certificate that TLS has verified.
///
/// # Errors
/// There is none, or it is not a machine's, or it has expired since the handshake.
pub fn identify(
    certificate: Option<&[u8]>,
    now: Timestamp,
) -> Result<(MachineId, CertificateSerial), Refusal> {
    let unauthorized = |text: &str| Refusal::new(RefusalCode::UNAUTHORIZED, text);
    let certificate = certificate
        .ok_or_else(|| unauthorized("a session needs a client certificate: enrol this machine first"))?;
    let identity = PeerIdentity::of(certificate).map_err(|error| unauthorized(&error.to_string()))?;
    if now > identity.not_after {
        return Err(unauthorized("the certificate has expired: enrol this machine again"));
    }
    let serial = identity
        .serial
        .try_into()
        .map_err(|_| unauthorized("the certificate's serial number is not ours"))?;
    Ok((identity.machine, CertificateSerial(serial)))
}
