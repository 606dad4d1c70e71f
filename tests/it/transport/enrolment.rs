//! Tokens, certificates, and who is let in.

use std::{net::UdpSocket, sync::Arc, time::Duration};

use anyhow::Result;
use holdfast_agent::{enrol::EnrolError, identity::IdentityError};
use holdfast_common::{
    token::{EnrolToken, Fingerprint},
    wire::{ALPN_ENROL, PROTOCOL_VERSION, RefusalCode},
};
use holdfast_tests::transport::TransportSite;

use super::raw;

#[tokio::test(flavor = "multi_thread")]
async fn a_token_enrols_once() -> Result<()> {
    let site = TransportSite::start()?;
    let token = site.token();
    let identity = site.enrol_at(site.address(), &token, "first").await?;
    assert_eq!(site.identity_store("first").load()?.machine, identity.machine);
    let replayed = site.enrol_at(site.address(), &token, "second").await;
    assert!(matches!(&replayed, Err(EnrolError::Refused(r)) if r.code == RefusalCode::TOKEN), "{replayed:?}");
    let nothing = site.identity_store("second").load();
    assert!(matches!(nothing, Err(IdentityError::NotEnrolled { .. })));
    let (connection, _) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    assert!(connection.close_reason().is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_does_not_enrol() -> Result<()> {
    let site = TransportSite::start()?;
    let token = site.token();
    site.clock.advance(Duration::from_hours(2));
    let expired = site.enrol_at(site.address(), &token, "late").await;
    assert!(matches!(&expired, Err(EnrolError::Refused(r)) if r.code == RefusalCode::TOKEN), "{expired:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_with_another_ca_gets_no_secret() -> Result<()> {
    let site = TransportSite::start()?;
    let good = site.token();
    let wrong = EnrolToken { secret: good.secret, authority: Fingerprint([7; 32]) };
    let refused = site.enrol_at(site.address(), &wrong, "fooled").await;
    assert!(matches!(&refused, Err(EnrolError::WrongCoordinator { .. })), "{refused:?}");
    // The token was not used up.
    site.enrol_at(site.address(), &good, "then").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_coordinator_is_not_let_in() -> Result<()> {
    let (ours, theirs) = (TransportSite::start()?, TransportSite::start()?);
    let mut stranger = theirs.enrol("stranger").await?;
    // It does not trust us either; even if it did, its certificate is not ours.
    assert!(raw::connect(&ours, &stranger).await.is_err());
    stranger.authority = ours.authority.certificate_der().to_vec();
    let closed = match raw::connect(&ours, &stranger).await {
        Ok(connection) => connection.closed().await,
        Err(error) => error.downcast()?,
    };
    let quinn::ConnectionError::ConnectionClosed(close) = &closed else { panic!("{closed:?}") };
    assert!((0x100..0x200).contains(&u64::from(close.error_code)), "{closed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_certificate_is_refused() -> Result<()> {
    let site = TransportSite::start()?;
    let clock = Arc::new(site.clock.clone());
    let mut tls = holdfast_common::tls::enrol_client(clock, site.authority.fingerprint())?;
    assert_eq!(tls.alpn_protocols, [ALPN_ENROL]);
    tls.alpn_protocols = vec![b"holdfast/1".to_vec()];
    let connection = raw::connect_with(tls, site.address()).await?;
    assert_eq!(raw::close_code(&connection).await, RefusalCode::UNAUTHORIZED);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_the_live_session_and_refuses_new_ones() -> Result<()> {
    let site = TransportSite::start()?;
    let identity = site.enrol("revoked").await?;
    let (connection, _) = raw::session(&site, &identity, PROTOCOL_VERSION).await?;
    site.directory.revoke(identity.machine);
    site.links.revoke(identity.machine, "revoked by the operator");
    assert_eq!(raw::close_code(&connection).await, RefusalCode::REVOKED);
    let again = raw::connect(&site, &identity).await?;
    assert_eq!(raw::close_code(&again).await, RefusalCode::REVOKED);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_refused() -> Result<()> {
    let site = TransportSite::start()?;
    let identity = site.enrol("old").await?;
    site.clock.advance(Duration::from_hours(31 * 24));
    let closed = match raw::connect(&site, &identity).await {
        Ok(connection) => connection.closed().await,
        Err(error) => error.downcast()?,
    };
    // TLS alert 45, certificate expired.
    assert!(
        matches!(&closed, quinn::ConnectionError::ConnectionClosed(c) if u64::from(c.error_code) == 0x100 + 45),
        "{closed:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_coordinators_cannot_share_a_port() -> Result<()> {
    let site = TransportSite::start()?;
    assert!(UdpSocket::bind(site.address()).is_err());
    site.ingest.shutdown().await;
    Ok(())
}
