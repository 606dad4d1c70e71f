//! Operators over the network: the real command against a real coordinator, over TLS.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use holdfast_common::token::OperatorToken;
use holdfast_tests::site::{Site, program, wait_for};
use serde_json::Value;

/// Failures of one address that are told; from then on it hears only that there are too many.
const FAILURES_TOLD: usize = 5;

/// Somebody on another host: has a home folder and a token, and no socket.
struct Operator {
    home: tempfile::TempDir,
}

/// What a command said: its JSON, or the error's code and text.
type Said = std::result::Result<Value, (Option<i32>, Value)>;

impl Operator {
    fn new() -> Result<Self> {
        Ok(Self { home: tempfile::tempdir()? })
    }

    fn file(&self) -> PathBuf {
        self.home.path().join("holdfast/config.toml")
    }

    fn run_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Said> {
        let mut command = Command::new(program("holdfast"));
        command.env_remove("HOLDFAST_COORDINATOR").env_remove("HOLDFAST_TOKEN");
        command.env("XDG_CONFIG_HOME", self.home.path()).envs(environment.iter().copied());
        let output = command.arg("--json").args(arguments).output()?;
        if output.status.success() {
            return Ok(Ok(serde_json::from_slice(&output.stdout)?));
        }
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let error = serde_json::from_str(&error).with_context(|| format!("not JSON: {error}"))?;
        Ok(Err((output.status.code(), error)))
    }

    fn run(&self, arguments: &[&str]) -> Result<Said> {
        self.run_with(arguments, &[])
    }

    fn login(address: &str, token: &str) -> Result<Self> {
        let operator = Self::new()?;
        let said = operator.run(&["login", address, "--token", token])?;
        ensure!(said.is_ok(), "{said:?}");
        Ok(operator)
    }
}

fn token(site: &Site, name: &str, role: &str, expires: &str) -> Result<String> {
    let made = site.cli(&["operator", "create", name, "--role", role, "--expires", expires])?;
    Ok(made["token"].as_str().context("token")?.to_owned())
}

/// That a command was refused, with this code and exit code.
fn refused(said: &Said, code: &str, exit: i32) {
    match said {
        Err((found, error)) => {
            assert_eq!((error["code"].as_str(), *found), (Some(code), Some(exit)), "{error}")
        }
        Ok(done) => panic!("it was not refused: {done}"),
    }
}

fn acts(site: &Site) -> Result<Vec<(String, String)>> {
    let audit = site.cli(&["audit", "--since", "1h", "--limit", "1000"])?;
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = audit.as_array().context("audit")?;
    Ok(entries.iter().map(|entry| (text(entry, "who"), text(entry, "what"))).collect())
}

fn count(acts: &[(String, String)], who: &str, what: &str) -> usize {
    acts.iter().filter(|(by, act)| by.starts_with(who) && act == what).count()
}

#[test]
fn operators_do_over_the_network_what_their_roles_allow() -> Result<()> {
    let mut site = Site::start()?;
    let address = site.let_operators_in()?;
    let viewer = Operator::login(&address, &token(&site, "vera", "viewer", "1d")?)?;
    let operator = Operator::login(&address, &token(&site, "oscar", "operator", "1d")?)?;
    let admin = Operator::login(&address, &token(&site, "ada", "admin", "1d")?)?;
    let mode = fs::metadata(viewer.file())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);

    let agent = site.add_agent()?;
    let machine = site.only_machine()?;
    for who in [&viewer, &operator, &admin] {
        let machines = who.run(&["machines"])?.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        assert_eq!(machines[0]["id"].as_str(), Some(&*machine));
    }
    let shorter = ["protect", &machine, "--retention", "1h"];
    let faster = ["protect", &machine, "--interval", "5s"];
    for change in [&shorter[..], &faster, &["point", "create", &machine], &["token", "create"]] {
        refused(&viewer.run(change)?, "role", 1);
    }
    assert!(operator.run(&faster)?.is_ok());
    for change in
        [&shorter[..], &["token", "create"], &["machine", "revoke", &machine, "--yes"], &["operator", "list"]]
    {
        refused(&operator.run(change)?, "role", 1);
    }
    let image = ["test-failover", &machine, "--point", "latest", "--image", "/etc/cron.d"];
    refused(&operator.run(&image)?, "role", 1);
    assert!(admin.run(&shorter)?.is_ok());
    assert_eq!(admin.run(&["operator", "list"])?.map_err(|_| ()).unwrap().as_array().map(Vec::len), Some(3));
    assert!(admin.run(&["machine", "revoke", &machine, "--yes"])?.is_ok());
    drop(agent);

    let acts = acts(&site)?;
    assert_eq!(count(&acts, "operator oscar", "protect"), 1, "{acts:?}");
    assert_eq!(count(&acts, "operator ada", "protect"), 1, "{acts:?}");
    assert_eq!(count(&acts, "operator ada", "revoke"), 1, "{acts:?}");
    assert_eq!(count(&acts, "operator vera", "refused"), 4, "{acts:?}");
    assert_eq!(count(&acts, "operator (uid ", "operator create"), 3, "{acts:?}");
    Ok(())
}

#[test]
fn tokens_that_are_revoked_expired_or_of_another_coordinator_are_worth_nothing() -> Result<()> {
    let mut site = Site::start()?;
    let address = site.let_operators_in()?;
    let bert = Operator::login(&address, &token(&site, "bert", "operator", "1d")?)?;
    assert!(bert.run(&["status"])?.is_ok());
    site.cli(&["operator", "revoke", "bert", "--yes"])?;
    refused(&bert.run(&["status"])?, "login", 1);

    let short = token(&site, "short", "viewer", "1s")?;
    let place = format!("https://{address}");
    let somebody = Operator::new()?;
    let given = ["--coordinator", &*place, "status"];
    wait_for("the token to expire", Duration::from_secs(20), || {
        let said = somebody.run_with(&given, &[("HOLDFAST_TOKEN", &short)])?;
        Ok(matches!(said, Err((Some(1), error)) if error["message"].as_str().is_some_and(|text| text.contains("expired")))
            .then_some(()))
    })?;
    refused(&somebody.run(&given)?, "usage", 2);

    // The token of another coordinator never leaves the host: this one cannot prove to be that one.
    let mut other = Site::start()?;
    let elsewhere = other.let_operators_in()?;
    let foreign = token(&site, "carl", "admin", "1d")?;
    let login = somebody.run(&["login", &elsewhere, "--token", &foreign])?;
    refused(&login, "unreachable", 3);
    assert!(!somebody.file().exists(), "what does not work is not kept");
    assert_eq!(count(&acts(&other)?, "unknown", "login failed"), 0);

    // Nor is one taken that somebody made up; whoever tries too often hears only that.
    let made_up = OperatorToken { secret: [7; 32], authority: foreign.parse::<OperatorToken>()?.authority };
    let try_it = || somebody.run(&["login", &address, "--token", &made_up.to_text()]);
    let before = count(&acts(&site)?, "unknown", "login failed");
    let mut codes = Vec::new();
    for _ in 0..2 * FAILURES_TOLD {
        let Err((_, error)) = try_it()? else { anyhow::bail!("a made-up token was taken") };
        codes.push(error["code"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(codes.last().map(String::as_str), Some("too-many"), "{codes:?}");
    assert!(count(&acts(&site)?, "unknown", "login failed") <= before + FAILURES_TOLD);
    // A good one is never held up by that.
    assert!(somebody.run(&["login", &address, "--token", &foreign])?.is_ok());
    assert!(somebody.run(&["who"])?.is_ok());
    assert!(somebody.run(&["logout"])?.is_ok() && !somebody.file().exists());
    Ok(())
}
