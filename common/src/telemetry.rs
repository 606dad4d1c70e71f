//! Logs: one subscriber, set up once per process.
//!
//! Owns the subscriber's set-up and the names of fields that every stage uses. Lines go to standard error; the
//! environment variable `HOLDFAST_LOG` filters them (syntax of tracing's `EnvFilter`), `HOLDFAST_LOG_FORMAT=json`
//! makes them JSON.

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Sets up logs for a program. Called once, first thing in `main`; later calls do nothing.
pub fn start<W>(writer: W)
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    let json = std::env::var("HOLDFAST_LOG_FORMAT").is_ok_and(|format| format == "json");
    let _already_set = if json { builder.json().try_init() } else { builder.try_init() };
}
