//! TLS: what both ends must agree on.
//!
//! Owns the crypto provider, keys and certificate requests, the name under which a coordinator is known, the form of a
//! machine's identity in its certificate, and the clients' and servers' common settings. Does not know sessions or messages.
//! Invariant: ring is the only provider; TLS 1.3 only; no session is ever resumed, so that every connection proves
//! possession of a certificate that is valid now.

use std::{fmt, sync::Arc};

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData as _};
use ring::signature::{ED25519, UnparsedPublicKey};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{ResolvesServerCert, WebPkiClientVerifier},
    time_provider::TimeProvider,
};
use thiserror::Error;
use x509_parser::{extensions::GeneralName, parse_x509_certificate};

use crate::{
    clock::{Clock, Timestamp},
    entropy::Entropy,
    ids::MachineId,
    token::Fingerprint,
};

/// Name in every coordinator's certificate. Trust comes from the pinned CA, so that a coordinator may be reached by any
/// address.
pub const COORDINATOR_NAME: &str = "coordinator.holdfast.internal";

/// ALPN of the operators' interface.
pub const ALPN_OPERATOR: &[u8] = b"http/1.1";

/// What stands before the UUID in a machine certificate's subject alternative name.
const MACHINE_URI: &str = "holdfast://machine/";

/// PKCS#8 version 1 of an Ed25519 key without its 32 bytes of seed (RFC 8410 section 7).
const ED25519_PKCS8: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What stands before the signature in a certificate that an Ed25519 key has signed (RFC 8410 sections 3 and 6).
const ED25519_SIGNATURE: [u8; 10] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x41, 0x00];

/// Why something of TLS cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The key is not an Ed25519 key in PKCS#8.
    #[error("the private key cannot be read")]
    Key(#[source] rcgen::Error),
    /// A certificate request cannot be made.
    #[error("a certificate request cannot be made")]
    Request(#[source] rcgen::Error),
    /// The certificate cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(&'static str),
    /// rustls refuses the settings.
    #[error("TLS cannot be set up")]
    Setup(#[from] rustls::Error),
    /// The verifier refuses the CA.
    #[error("the CA certificate cannot be used to verify others")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// An Ed25519 key. Debug output does not show it.
pub struct MachineKey(KeyPair);

impl MachineKey {
    /// A new key.
    ///
    /// # Errors
    /// Only if ring refuses the seed.
    pub fn generate(entropy: &dyn Entropy) -> Result<Self, TlsError> {
        let mut seed = [0; 32];
        entropy.fill(&mut seed);
        let mut pkcs8 = ED25519_PKCS8.to_vec();
        pkcs8.extend_from_slice(&seed);
        Self::from_pkcs8(&pkcs8)
    }

    /// From its stored form.
    ///
    /// # Errors
    /// [`TlsError::Key`].
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, TlsError> {
        let der = PrivatePkcs8KeyDer::from(pkcs8);
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).map(Self).map_err(TlsError::Key)
    }

    /// The stored form, PKCS#8 DER. A secret.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// The key for rcgen, which signs with it.
    #[must_use]
    pub fn into_pair(self) -> KeyPair {
        self.0
    }

    /// The raw public key.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        self.0.der_bytes()
    }

    /// A certificate request for this key, DER. It carries no names: the coordinator decides what is certified.
    ///
    /// # Errors
    /// [`TlsError::Request`].
    pub fn request_der(&self) -> Result<Vec<u8>, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.0).map_err(TlsError::Request)?;
        Ok(request.der().to_vec())
    }

    /// The key for rustls.
    #[must_use]
    pub fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8().to_vec()))
    }
}

impl fmt::Debug for MachineKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachineKey")
    }
}

/// Who a certificate says its holder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The machine.
    pub machine: MachineId,
    /// Serial number as it stands in the certificate.
    pub serial: Vec<u8>,
    /// When the certificate begins to be valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
}

impl PeerIdentity {
    /// Reads a machine's certificate. Its signature must have been verified by TLS.
    ///
    /// # Errors
    /// It is not a machine's certificate.
    pub fn of(certificate_der: &[u8]) -> Result<Self, TlsError> {
        let (rest, certificate) =
            parse_x509_certificate(certificate_der).map_err(|_| TlsError::Certificate("not X.509"))?;
        if !rest.is_empty() {
            return Err(TlsError::Certificate("bytes after its end"));
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.ok_or(TlsError::Certificate("it names no machine"))?;
        let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else {
            return Err(TlsError::Certificate("it does not name exactly one machine"));
        };
        let machine = uri.strip_prefix(MACHINE_URI).and_then(|text| text.parse().ok());
        let seconds =
            |time: x509_parser::time::ASN1Time| Timestamp(time.timestamp().saturating_mul(1_000_000));
        Ok(Self {
            machine: machine.ok_or(TlsError::Certificate("its name is not a machine's"))?,
            serial: certificate.raw_serial().to_vec(),
            not_before: seconds(certificate.validity().not_before),
            not_after: seconds(certificate.validity().not_after),
        })
    }
}

/// The raw public key in a certificate.
///
/// # Errors
/// It is not a certificate.
pub fn public_key(certificate_der: &[u8]) -> Result<Vec<u8>, TlsError> {
    let (_, certificate) =
        parse_x509_certificate(certificate_der).map_err(|_| TlsError::Certificate("not X.509"))?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

/// Whether a certificate (of more than 255 bytes, as each of ours is) is as its own Ed25519 key has signed it, to the last bit.
///
/// # Errors
/// It is not.
pub fn check_self_signed(certificate_der: &[u8]) -> Result<(), TlsError> {
    let wrong = TlsError::Certificate("it is not as it was signed");
    // What stands around the signed part is the same for all certificates of this length, and has to be: its readers forgive much.
    let Some((header, rest)) = certificate_der.split_at_checked(4) else { return Err(wrong) };
    let Some((rest, signature)) = rest.split_last_chunk::<64>() else { return Err(wrong) };
    let Some(signed) = rest.strip_suffix(&ED25519_SIGNATURE) else { return Err(wrong) };
    let length = u16::try_from(certificate_der.len() - 4).map_or([0; 2], u16::to_be_bytes);
    let verified = UnparsedPublicKey::new(&ED25519, public_key(certificate_der)?).verify(signed, signature);
    if header != [0x30, 0x82, length[0], length[1]] || verified.is_err() {
        return Err(wrong);
    }
    Ok(())
}

/// The name of a machine in its certificate.
#[must_use]
pub fn machine_uri(machine: MachineId) -> String {
    format!("{MACHINE_URI}{machine}")
}

/// The one crypto provider.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Settings of a client that has a certificate, trusts exactly this CA and speaks this protocol.
///
/// # Errors
/// Key, certificate or CA cannot be used.
pub fn session_client(
    clock: Arc<dyn Clock>,
    authority_der: &[u8],
    certificate_der: &[u8],
    key: &MachineKey,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let roots = roots(authority_der)?;
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(InjectedTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate_der.to_vec().into()], key.private_der())?;
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Settings of a client that knows only the fingerprint of the CA: for enrolment.
///
/// # Errors
/// rustls refuses its settings.
pub fn enrol_client(clock: Arc<dyn Clock>, authority: Fingerprint) -> Result<ClientConfig, TlsError> {
    pinned_client(clock, authority, crate::wire::ALPN_ENROL)
}

/// Settings of an operator's client, which knows the fingerprint of the CA from its token.
///
/// # Errors
/// rustls refuses its settings.
pub fn operator_client(clock: Arc<dyn Clock>, authority: Fingerprint) -> Result<ClientConfig, TlsError> {
    pinned_client(clock, authority, ALPN_OPERATOR)
}

fn pinned_client(
    clock: Arc<dyn Clock>,
    authority: Fingerprint,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(InjectedTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { authority, provider: provider() }))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// Settings of the server that operators reach. They have no certificates; their tokens say who they are.
///
/// # Errors
/// rustls refuses its settings.
pub fn operator_server(
    clock: Arc<dyn Clock>,
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let config = ServerConfig::builder_with_details(provider(), Arc::new(InjectedTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    Ok(unresumed(config, &[ALPN_OPERATOR]))
}

/// Settings of the server. A client's certificate is optional (enrolment has none), and verified if there is one.
///
/// # Errors
/// The CA cannot be used.
pub fn server(
    clock: Arc<dyn Clock>,
    authority_der: &[u8],
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority_der)?), provider())
        .allow_unauthenticated()
        .build()?;
    let config = ServerConfig::builder_with_details(provider(), Arc::new(InjectedTime(clock)))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver);
    Ok(unresumed(config, &[crate::wire::ALPN_SESSION, crate::wire::ALPN_WRITE_BACK, crate::wire::ALPN_ENROL]))
}

/// A server that speaks these protocols and resumes no session.
fn unresumed(mut config: ServerConfig, alpn: &[&[u8]]) -> ServerConfig {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn roots(authority_der: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(authority_der.to_vec()))?;
    Ok(roots)
}

/// Verifies a coordinator by the fingerprint of its CA, which the coordinator sends along.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates.iter().find(|sent| Fingerprint::of(sent) == self.authority);
        let pinned = pinned.ok_or(rustls::CertificateError::UnknownIssuer)?;
        let roots = roots(pinned).map_err(|_| rustls::CertificateError::BadEncoding)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Our clock, as rustls wants to see it.
#[derive(Debug)]
struct InjectedTime(Arc<dyn Clock>);

impl TimeProvider for InjectedTime {
    fn current_time(&self) -> Option<UnixTime> {
        let micros = u64::try_from(self.0.wall().0).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_micros(micros)))
    }
}
