//! QUIC alone: the same bytes over loopback with the product's windows and TLS, and nothing done with them.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use holdfast_common::{
    clock::SystemClock,
    entropy::SystemEntropy,
    tls::{COORDINATOR_NAME, enrol_client},
};
use holdfast_coordinator::authority::{Authority, MACHINE_LIFE_DEFAULT};
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, ServerConfig, TokioRuntime, TransportConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use socket2::{Domain, Socket, Type};

use crate::{
    machine::{Cost, measure},
    stages::Sealed,
};

const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const SOCKET_BUFFER: usize = 4 << 20;
const CHUNKS: usize = 32;

/// Sends all frames over one stream and reads them to the end.
pub(crate) fn pass(sealed: &Sealed, folder: &Path) -> Result<Cost> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (server, client) = runtime.block_on(async { endpoints(folder) })?;
    let address = server.local_addr()?;
    let (_, cost) = measure(|| {
        runtime.block_on(async {
            let receiving = tokio::spawn(receive(server));
            let connection = client.connect(address, COORDINATOR_NAME)?.await?;
            send(&connection, &sealed.frames).await?;
            let received = receiving.await??;
            ensure!(received == sealed.bytes, "{received} of {} bytes arrived", sealed.bytes);
            Ok(())
        })
    })?;
    Ok(cost)
}

async fn send(connection: &Connection, frames: &[Bytes]) -> Result<()> {
    let mut stream = connection.open_uni().await?;
    for frame in frames {
        stream.write_chunk(frame.clone()).await?;
    }
    stream.finish()?;
    stream.stopped().await?;
    Ok(())
}

async fn receive(server: Endpoint) -> Result<u64> {
    let connection = server.accept().await.context("a connection")?.await?;
    let mut stream = connection.accept_uni().await?;
    let mut received = 0;
    let mut chunks = vec![Bytes::new(); CHUNKS];
    while let Some(count) = stream.read_chunks(&mut chunks).await? {
        received += chunks.iter().take(count).map(|chunk| chunk.len() as u64).sum::<u64>();
    }
    Ok(received)
}

fn endpoints(folder: &Path) -> Result<(Endpoint, Endpoint)> {
    let clock = Arc::new(SystemClock::new());
    let authority =
        Authority::open(folder, MACHINE_LIFE_DEFAULT, clock.clone(), Arc::new(SystemEntropy::new()))?;
    let authority = Arc::new(authority);
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_idle_timeout(Some(Duration::from_secs(30).try_into()?));
    let transport = Arc::new(transport);
    let mut server_config =
        ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(authority.server_config()?)?));
    server_config.transport_config(Arc::clone(&transport));
    let tls = enrol_client(clock, authority.fingerprint())?;
    let mut client_config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client_config.transport_config(transport);
    let runtime = Arc::new(TokioRuntime);
    let server = Endpoint::new(EndpointConfig::default(), Some(server_config), socket()?, runtime.clone())?;
    let mut client = Endpoint::new(EndpointConfig::default(), None, socket()?, runtime)?;
    client.set_default_client_config(client_config);
    Ok((server, client))
}

fn socket() -> Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let _capped = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _capped = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(socket.into())
}
