//! The QUIC endpoint: sockets and transport parameters.
//!
//! Owns what is set on sockets and connections, and the translation of the transport's errors. Does not know messages.
//! Limits: [`SEND_WINDOW_BYTES`] unacknowledged by the transport, which the window's budget keeps below.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use holdfast_common::wire::{Refusal, RefusalCode};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, EndpointConfig, TokioRuntime, TransportConfig, VarInt,
    congestion::{BbrConfig, CubicConfig, NewRenoConfig},
    crypto::rustls::QuicClientConfig,
};
use serde::Deserialize;
use socket2::{Domain, Protocol, Socket, Type};

/// Bytes that the transport keeps until the peer has them.
const SEND_WINDOW_BYTES: u64 = 64 << 20;

/// What the coordinator may send to us; control messages only.
const RECEIVE_WINDOW_BYTES: u32 = 8 << 20;

/// Congestion control of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Congestion {
    /// Fair and the usual choice; slow where packets are lost at random.
    #[default]
    Cubic,
    /// Holds its rate under random loss, at the price of many packets sent again.
    Bbr,
    /// The classic; for comparison.
    NewReno,
}

/// What a link is made of.
#[derive(Clone, Copy, Debug)]
pub struct LinkSettings {
    /// Congestion control.
    pub congestion: Congestion,
    /// Time between packets that keep an idle connection (and NAT in between) alive.
    pub keep_alive: Duration,
    /// Silence after which the link is lost.
    pub idle_timeout: Duration,
    /// Socket buffers asked of the kernel, in bytes; it may give less (net.core.rmem_max, wmem_max).
    pub socket_buffer_bytes: usize,
}

impl Default for LinkSettings {
    fn default() -> Self {
        Self {
            congestion: Congestion::Cubic,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            socket_buffer_bytes: 4 << 20,
        }
    }
}

/// An endpoint that can reach this address. A new one for each connection follows changes of our own address.
pub(crate) fn open(peer: SocketAddr, settings: &LinkSettings) -> io::Result<Endpoint> {
    let local: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel cuts what it does not allow; less is slower, not wrong.
    let _capped = socket.set_recv_buffer_size(settings.socket_buffer_bytes);
    let _capped = socket.set_send_buffer_size(settings.socket_buffer_bytes);
    socket.set_nonblocking(true)?;
    socket.bind(&local.into())?;
    Endpoint::new(EndpointConfig::default(), None, socket.into(), Arc::new(TokioRuntime))
}

/// The client's settings for this TLS configuration.
pub(crate) fn client(tls: rustls::ClientConfig, settings: &LinkSettings) -> io::Result<ClientConfig> {
    let crypto = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let mut transport = TransportConfig::default();
    transport
        .send_window(SEND_WINDOW_BYTES)
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(settings.keep_alive))
        .max_idle_timeout(Some(settings.idle_timeout.try_into().map_err(io::Error::other)?));
    match settings.congestion {
        Congestion::Cubic => transport.congestion_controller_factory(Arc::new(CubicConfig::default())),
        Congestion::Bbr => transport.congestion_controller_factory(Arc::new(BbrConfig::default())),
        Congestion::NewReno => transport.congestion_controller_factory(Arc::new(NewRenoConfig::default())),
    };
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What the peer's refusal was, if it closed the connection itself.
pub(crate) fn refusal(error: &ConnectionError) -> Option<Refusal> {
    let ConnectionError::ApplicationClosed(close) = error else { return None };
    let code = u32::try_from(close.error_code.into_inner()).unwrap_or(u32::MAX);
    Some(Refusal::new(RefusalCode(code), String::from_utf8_lossy(&close.reason)))
}

/// Why a connection ended, for people, with what to do about it.
pub(crate) fn describe(error: &ConnectionError) -> String {
    if let Some(refusal) = refusal(error) {
        return format!("the coordinator closed the connection: {refusal}");
    }
    let alert = match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::TransportError(error) => u64::from(error.code),
        _ => 0,
    };
    // TLS alerts are errors 0x100 and up (RFC 9001 section 4.8).
    let advice = match alert.checked_sub(0x100) {
        Some(44) => "the certificate was revoked: enrol this machine again",
        Some(45) => {
            "a certificate has expired (or a clock is wrong): check both clocks, then enrol this machine again"
        }
        Some(42 | 43 | 46) => {
            "a certificate was not accepted: check both clocks; if they are right, enrol this machine again"
        }
        Some(48) => {
            "the certificate is of another CA: this is not the coordinator that this machine was enrolled with; check \
             its address, or enrol this machine there anew with `holdfast-agent enroll`"
        }
        Some(120) => "the coordinator does not speak this protocol: upgrade the older one",
        _ if matches!(error, ConnectionError::TimedOut) => {
            "no answer: is the coordinator running, and does the network let UDP through to its port?"
        }
        _ if matches!(error, ConnectionError::Reset) => "the coordinator was started anew",
        _ => return error.to_string(),
    };
    format!("{error}: {advice}")
}
