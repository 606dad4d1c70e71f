//! Commands about operators: their tokens, logging in, and who did what.
//!
//! Owns one function per command: ask, print.

use std::{io::Read as _, time::Duration};

use comfy_table::{Table, presets::NOTHING};
use holdfast_coordinator::api::shapes::{
    AuditShape, OperatorRequest, OperatorShape, OperatorTokenShape, WhoShape,
};
use serde_json::json;

use crate::{
    arguments::{LoginOptions, OperatorCommand, RoleName},
    client::{Client, Target, escape},
    commands::confirmed,
    duration::parse_duration,
    output::{Failure, Output},
    settings, tables,
};

/// Longest token that is read from standard input.
const TOKEN_BYTES_MAX: u64 = 4096;

pub(crate) async fn operator(
    client: &Client,
    output: Output,
    command: OperatorCommand,
) -> Result<(), Failure> {
    match command {
        OperatorCommand::Create { name, role, expires } => create(client, output, name, role, expires).await,
        OperatorCommand::List => {
            let operators: Vec<OperatorShape> = client.get("/v1/operators").await?;
            output.answer(&operators, |operators| table(operators))
        }
        OperatorCommand::Revoke { name, yes } => {
            if !yes && !confirmed(&format!("Revoke the token of {name}? [y/N] "))? {
                return Err(Failure::failed("nothing was changed", ""));
            }
            let path = format!("/v1/operators/{}/revoke", escape(&name));
            let revoked: OperatorShape = client.post(&path, &()).await?;
            output.answer(&revoked, |operator| {
                format!("The token of {} is worth nothing any more.", operator.name)
            })
        }
    }
}

async fn create(
    client: &Client,
    output: Output,
    name: String,
    role: RoleName,
    expires: Duration,
) -> Result<(), Failure> {
    let request =
        OperatorRequest { name, role: role.text().to_owned(), life_seconds: Some(expires.as_secs()) };
    let token: OperatorTokenShape = client.post("/v1/operators", &request).await?;
    output.answer(&token, |token| {
        let place = match &token.coordinator {
            Some(address) => format!(
                "where HOST:PORT reaches this coordinator, which listens for operators on {address} (TCP)."
            ),
            None => "once this coordinator listens for operators: start it with --api-listen ADDR:PORT."
                .to_owned(),
        };
        format!(
            "{}\n\nIt is shown only now, and works until {} for {} as {}. There, run\n  \
             holdfast login HOST:PORT --token TOKEN\n{place}",
            token.token,
            tables::local(&token.operator.expires_at),
            token.operator.name,
            token.operator.role,
        )
    })
}

fn table(operators: &[OperatorShape]) -> String {
    if operators.is_empty() {
        return "No operators yet. `holdfast operator create` makes a token for one.".to_owned();
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["NAME", "ROLE", "STATE", "CREATED", "EXPIRES"]);
    for operator in operators {
        table.add_row([
            operator.name.clone(),
            operator.role.clone(),
            operator.state.clone(),
            tables::local(&operator.created_at),
            tables::local(&operator.expires_at),
        ]);
    }
    table.to_string()
}

/// Proves that the token works before it is kept.
pub(crate) async fn login(output: Output, options: LoginOptions) -> Result<(), Failure> {
    let text = if options.token == "-" { token_of_standard_input()? } else { options.token };
    let address = options.address.strip_prefix("https://").unwrap_or(&options.address).trim_end_matches('/');
    let target = settings::remote(address, &text)?;
    let Target::Remote { token, .. } = &target else { return Ok(()) };
    let token = token.clone();
    let who: WhoShape = Client::new(target).get("/v1/who").await?;
    let file = settings::store(address, &token)?;
    let answer = json!({ "name": who.name, "role": who.role, "version": who.version,
        "coordinator": format!("https://{address}"), "file": file });
    output.answer(&answer, |_| {
        format!("Logged in at {address} as {} ({}); kept in {}.", who.name, who.role, file.display())
    })
}

fn token_of_standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    let read = std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| {
        Failure::failed(format!("the token cannot be read: {error}"), "give it with --token")
    })?;
    Ok(text)
}

pub(crate) fn logout(output: Output) -> Result<(), Failure> {
    let file = settings::forget()?;
    output.answer(&json!({ "file": file }), |_| match &file {
        Some(file) => format!(
            "Logged out: {} is removed. The token itself still works until it is revoked.",
            file.display()
        ),
        None => "There was no login.".to_owned(),
    })
}

pub(crate) async fn who(client: &Client, output: Output) -> Result<(), Failure> {
    let who: WhoShape = client.get("/v1/who").await?;
    output.answer(&who, |who| format!("{}, {}, at a coordinator {}", who.name, who.role, who.version))
}

pub(crate) async fn audit(
    client: &Client,
    output: Output,
    limit: u32,
    since: Option<String>,
) -> Result<(), Failure> {
    let since = since.as_deref().map(since_query).transpose()?.unwrap_or_default();
    let entries: Vec<AuditShape> = client.get(&format!("/v1/audit?limit={limit}{since}")).await?;
    output.answer(&entries, |entries| tables::audit(entries))
}

/// A time or an age, as the coordinator takes it.
fn since_query(text: &str) -> Result<String, Failure> {
    if let Ok(age) = parse_duration(text) {
        return Ok(format!("&age_ms={}", age.as_millis()));
    }
    let at: jiff::Timestamp = text.parse().map_err(|_| {
        let message = format!("`{}` is neither an age nor a time", text.chars().take(80).collect::<String>());
        Failure::usage(message, "write an age (24h, 7d) or a time (2026-11-25T22:00:00Z)")
    })?;
    Ok(format!("&since_us={}", at.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::since_query;

    #[test]
    fn ages_and_times_are_told_apart() {
        assert_eq!(since_query("24h").unwrap(), "&age_ms=86400000");
        assert_eq!(since_query("1970-01-01T00:00:01Z").unwrap(), "&since_us=1000000");
        assert!(since_query("yesterday").is_err());
    }
}
