//! An agent that says whatever a test wants, over a real connection.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use holdfast_agent::identity::Identity;
use holdfast_common::{
    frame::{Extent, FrameIdentity, FrameSealer},
    ids::{DiskId, Generation, Interval, Sequence},
    tls::{self, COORDINATOR_NAME, MachineKey},
    units::BlockRange,
    wire::{
        ALPN_SESSION, AgentMessage, CoordinatorMessage, DataStreamStart, Hello, MessageBuffer, RefusalCode,
        Welcome, envelope,
    },
};
use holdfast_tests::transport::{TransportSite, inventory};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, crypto::rustls::QuicClientConfig,
};

/// A control stream.
pub(super) struct Control {
    pub(super) send: SendStream,
    receive: RecvStream,
    buffer: MessageBuffer,
}

impl Control {
    pub(super) async fn say(&mut self, message: &AgentMessage) -> Result<()> {
        Ok(self.send.write_all(&envelope::seal(message)?).await?)
    }

    pub(super) async fn hear(&mut self) -> Result<CoordinatorMessage> {
        loop {
            if let Some(message) = self.buffer.next()? {
                return Ok(message);
            }
            let chunk = self.receive.read_chunk(usize::MAX, true).await?.context("control stream ended")?;
            self.buffer.push(&chunk.bytes);
        }
    }

    pub(super) async fn welcome(&mut self) -> Result<Box<Welcome>> {
        match self.hear().await? {
            CoordinatorMessage::Welcome(welcome) => Ok(welcome),
            other => bail!("not a welcome: {other:?}"),
        }
    }
}

pub(super) async fn connect_with(tls: rustls::ClientConfig, address: SocketAddr) -> Result<Connection> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    Ok(endpoint.connect_with(config, address, COORDINATOR_NAME)?.await?)
}

pub(super) async fn connect(site: &TransportSite, identity: &Identity) -> Result<Connection> {
    let key = MachineKey::from_pkcs8(&identity.key)?;
    let clock = Arc::new(site.clock.clone());
    let tls = tls::session_client(clock, &identity.authority, &identity.certificate, &key, ALPN_SESSION)?;
    connect_with(tls, site.address()).await
}

pub(super) async fn control(connection: &Connection) -> Result<Control> {
    let (send, receive) = connection.open_bi().await?;
    Ok(Control { send, receive, buffer: MessageBuffer::default() })
}

pub(super) fn hello(protocol_version: u32) -> AgentMessage {
    AgentMessage::Hello(Box::new(Hello {
        protocol_version,
        agent_version: "raw".to_owned(),
        inventory: inventory("raw"),
        disks: Vec::new(),
    }))
}

/// A session up to its welcome.
pub(super) async fn session(
    site: &TransportSite,
    identity: &Identity,
    version: u32,
) -> Result<(Connection, Control)> {
    let connection = connect(site, identity).await?;
    let mut control = control(&connection).await?;
    control.say(&hello(version)).await?;
    control.welcome().await?;
    Ok((connection, control))
}

/// Opens a data stream and sends these bytes on it.
pub(super) async fn data(connection: &Connection, disk: DiskId, bytes: &[u8]) -> Result<SendStream> {
    let mut stream = connection.open_uni().await?;
    stream.write_all(&envelope::seal(&DataStreamStart { disk, generation: Generation(1) })?).await?;
    stream.write_all(bytes).await?;
    Ok(stream)
}

/// A frame of one block.
pub(super) fn frame(disk: DiskId, generation: Generation, sequence: u64) -> (FrameIdentity, Bytes) {
    let identity = FrameIdentity { disk, generation, sequence: Sequence(sequence), interval: Interval(1) };
    let plain = [u8::try_from(sequence % 251).unwrap(); 4096];
    let extents = [Extent::data(BlockRange::new(sequence, 1))];
    (identity, FrameSealer::new(None).unwrap().seal_data(identity, &extents, &plain).unwrap())
}

/// Waits for the coordinator to close, and says with which code.
pub(super) async fn close_code(connection: &Connection) -> RefusalCode {
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => {
            RefusalCode(u32::try_from(close.error_code.into_inner()).unwrap())
        }
        other => panic!("not closed by the coordinator: {other:?}"),
    }
}
