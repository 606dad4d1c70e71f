//! Agents that break the protocol: the right refusal, and nobody else is hurt.

use anyhow::Result;
use holdfast_agent::identity::Identity;
use holdfast_common::{
    codec,
    ids::{DiskId, Generation, Sequence},
    wire::{AgentMessage, CoordinatorMessage, PROTOCOL_VERSION, RefusalCode},
};
use holdfast_tests::transport::TransportSite;

use super::raw;

const DISK: DiskId = DiskId::from_bytes([1; 16]);
const OTHER: DiskId = DiskId::from_bytes([2; 16]);

async fn site() -> Result<(TransportSite, Identity)> {
    let site = TransportSite::start()?;
    let identity = site.enrol("hostile").await?;
    site.directory.protect(identity.machine, DISK);
    Ok((site, identity))
}

/// Bytes on a data stream, the refusal they earn, and a well-behaved neighbour that goes on.
async fn check_data(bytes: &[u8], expected: RefusalCode) -> Result<()> {
    let (site, identity) = site().await?;
    let neighbour = site.enrol("neighbour").await?;
    site.directory.protect(neighbour.machine, OTHER);
    let (good, mut control) = raw::session(&site, &neighbour, PROTOCOL_VERSION).await?;
    let mut stream = raw::data(&good, OTHER, &raw::frame(OTHER, Generation(1), 1).1).await?;
    let (bad, _control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    let _stream = raw::data(&bad, DISK, bytes).await?;
    assert_eq!(raw::close_code(&bad).await, expected);
    assert!(site.store.sink(DISK).digests().is_empty());
    stream.write_all(&raw::frame(OTHER, Generation(1), 2).1).await?;
    loop {
        if control.hear().await? == (CoordinatorMessage::Acknowledge { disk: OTHER, sequence: Sequence(2) }) {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_a_data_stream() -> Result<()> {
    check_data(&[0x5a; 500], RefusalCode::PROTOCOL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_frame() -> Result<()> {
    let mut bytes = raw::frame(DISK, Generation(1), 1).1.to_vec();
    bytes[48..52].copy_from_slice(&u32::MAX.to_le_bytes());
    check_data(&bytes, RefusalCode::LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit() -> Result<()> {
    let mut bytes = raw::frame(DISK, Generation(1), 1).1.to_vec();
    bytes[2000] ^= 4;
    check_data(&bytes, RefusalCode::DAMAGED).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gap() -> Result<()> {
    check_data(&raw::frame(DISK, Generation(1), 2).1, RefusalCode::SEQUENCE).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_a_disk_that_is_not_its_own() -> Result<()> {
    check_data(&raw::frame(OTHER, Generation(1), 1).1, RefusalCode::UNAUTHORIZED).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_a_disk_that_is_not_its_own_is_stopped() -> Result<()> {
    let (site, identity) = site().await?;
    let (connection, _control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    let mut stream = raw::data(&connection, OTHER, &raw::frame(OTHER, Generation(1), 1).1).await?;
    assert_eq!(stream.stopped().await?, Some(RefusalCode::FENCED.0.into()));
    assert!(site.store.sink(OTHER).digests().is_empty());
    let _ = stream.finish();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_oversized_control_message() -> Result<()> {
    let (site, identity) = site().await?;
    let (connection, mut control) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    control.send.write_all(&u32::MAX.to_le_bytes()).await?;
    assert_eq!(raw::close_code(&connection).await, RefusalCode::PROTOCOL);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_before_the_hello() -> Result<()> {
    let (site, identity) = site().await?;
    let connection = raw::connect(&site, &identity).await?;
    let mut control = raw::control(&connection).await?;
    control
        .say(&AgentMessage::Renew(holdfast_common::wire::RenewRequest { request_der: Vec::new() }))
        .await?;
    assert_eq!(raw::close_code(&connection).await, RefusalCode::PROTOCOL);
    assert_eq!(site.directory.hellos(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version() -> Result<()> {
    let (site, identity) = site().await?;
    let connection = raw::connect(&site, &identity).await?;
    let mut control = raw::control(&connection).await?;
    control.say(&raw::hello(99)).await?;
    assert_eq!(raw::close_code(&connection).await, RefusalCode::VERSION);
    Ok(())
}

/// One with fields that this version does not know: what an agent of tomorrow says.
#[tokio::test(flavor = "multi_thread")]
async fn a_hello_that_cannot_be_read_further_than_its_version() -> Result<()> {
    let (site, identity) = site().await?;
    let connection = raw::connect(&site, &identity).await?;
    let mut control = raw::control(&connection).await?;
    let hello = (codec::encode(&raw::hello(PROTOCOL_VERSION + 1))?, codec::encode(&"a field of tomorrow")?);
    let body = [hello.0, hello.1].concat();
    control.send.write_all(&u32::try_from(body.len())?.to_le_bytes()).await?;
    control.send.write_all(&body).await?;
    let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else {
        panic!("not closed by the coordinator")
    };
    let said = String::from_utf8_lossy(&close.reason);
    assert_eq!(close.error_code.into_inner(), u64::from(RefusalCode::VERSION.0), "{said}");
    assert!(
        said.contains(&format!("version {}", PROTOCOL_VERSION + 1)) && said.contains("upgrade the older one"),
        "{said}"
    );
    Ok(())
}
