//! A real MariaDB under writes: the shipped hook makes app-consistent points in which the tables of every engine are whole, those
//! included that have no crash recovery.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use holdfast_tests::{
    file_system::{Kind, MountedDisk, run},
    load::mount_copies,
    loop_device,
    site::{Site, wait_for},
};

const PATIENCE: Duration = Duration::from_secs(60);
const DISK_BYTES: u64 = 512 << 20;
const POINTS: usize = 3;

/// A server, killed on drop.
struct Server {
    process: Child,
    socket: PathBuf,
}

impl Server {
    fn start(data: &Path, folder: &Path) -> Result<Self> {
        let socket = folder.join("mariadb.sock");
        let log = fs::File::create(folder.join("mariadb.log"))?;
        let mut command = Command::new("mariadbd");
        command
            .args(["--no-defaults", "--user=root", "--skip-networking", "--innodb-log-file-size=8M"])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--socket={}", socket.display()))
            .arg(format!("--pid-file={}", folder.join("mariadb.pid").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let server = Self { process: command.spawn()?, socket };
        wait_for("the server", PATIENCE, || Ok(server.ask("SELECT 1").ok().map(drop)))
            .with_context(|| fs::read_to_string(folder.join("mariadb.log")).unwrap_or_default())?;
        Ok(server)
    }

    fn client(&self) -> Command {
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "-uroot", "-N", "-B", "--unbuffered"]);
        command.arg(format!("--socket={}", self.socket.display()));
        command
    }

    fn ask(&self, sql: &str) -> Result<String> {
        run(self.client().args(["-e", sql]))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.process.kill().and_then(|()| self.process.wait());
    }
}

/// Writes number after number into a table of each kind, and knows what was answered.
struct Writer {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Writer {
    fn start(server: &Server) -> Result<Self> {
        server.ask(
            "CREATE DATABASE shop; CREATE TABLE shop.recovered (n BIGINT PRIMARY KEY, t TEXT) ENGINE=InnoDB; \
             CREATE TABLE shop.plain (n BIGINT PRIMARY KEY, t TEXT) ENGINE=MyISAM",
        )?;
        let mut session = server.client().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (answered, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let (count, ending) = (Arc::clone(&answered), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut asks = session.stdin.take().context("a way in")?;
            let mut answers = BufReader::new(session.stdout.take().context("a way out")?).lines();
            while !ending.load(SeqCst) {
                let n = count.load(SeqCst) + 1;
                writeln!(
                    asks,
                    "INSERT INTO shop.recovered VALUES ({n}, REPEAT('x', 200)); \
                     INSERT INTO shop.plain VALUES ({n}, REPEAT('y', 200)); SELECT {n};"
                )?;
                let answer = answers.next().context("the server is gone")??;
                ensure!(answer == n.to_string(), "{answer} instead of {n}");
                count.store(n, SeqCst);
            }
            drop(asks);
            session.wait()?;
            Ok(())
        });
        Ok(Self { answered, stop, thread: Some(thread) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _the_test_has_failed_already_if_it_did = self.thread.take().map(JoinHandle::join);
    }
}

/// Starts a server on a copy of the point: what it holds of both tables, each without a word of complaint.
fn check(site: &Site, machine: &str, point: &str, disk: &MountedDisk, before: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mounted = mount_copies(site, machine, point, &[disk], folder.path())?;
    let server = Server::start(&mounted[0].0.join("data"), folder.path())?;
    let checked = server.ask("CHECK TABLE shop.recovered, shop.plain EXTENDED")?;
    let verdicts: Vec<&str> = checked.lines().collect();
    ensure!(verdicts.len() == 2 && verdicts.iter().all(|line| line.ends_with("status\tOK")), "{checked}");
    let newest = |table: &str| -> Result<u64> {
        let found = server.ask(&format!("SELECT COUNT(*), MAX(n) FROM shop.{table}"))?;
        let (rows, newest) = found.trim().split_once('\t').context("two numbers")?;
        ensure!(rows == newest, "{table} has {rows} rows up to {newest}");
        Ok(newest.parse()?)
    };
    let (recovered, plain) = (newest("recovered")?, newest("plain")?);
    ensure!(recovered >= before && plain >= before, "{before} was answered before: {recovered}, {plain}");
    // Statement after statement, in this order.
    ensure!(recovered == plain || recovered == plain + 1, "{recovered} and {plain}");
    eprintln!("{before} were answered before the point, it ends with {recovered} and {plain}");
    Ok(())
}

#[test]
fn the_mysql_hook_makes_points_in_which_every_table_is_whole() -> Result<()> {
    let is_installed =
        Path::new("/usr/sbin/mariadbd").exists() && Path::new("/usr/bin/mariadb-install-db").exists();
    if !is_installed {
        eprintln!("skipped: MariaDB is not installed (packages mariadb-server-core, mariadb-client-core)");
        return Ok(());
    }
    if let Some(reason) = loop_device::unavailable() {
        eprintln!("skipped: {reason}");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let hooks = folder.path().join("freeze-hook.d");
    fs::create_dir(&hooks)?;
    let hook = hooks.join("50-mysql");
    fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/freeze-hook.d/mysql"), &hook)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;

    let disk = MountedDisk::create(Kind::Ext4, DISK_BYTES)?;
    let data = disk.folder().join("data");
    let mut install = Command::new("mariadb-install-db");
    install.args([
        "--no-defaults",
        "--user=root",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    ]);
    run(install.arg(format!("--datadir={}", data.display())))?;
    let server = Server::start(&data, folder.path())?;
    let site = Site::start()?;
    let client = format!("HOLDFAST_MYSQL=mariadb --no-defaults -uroot --socket={}", server.socket.display());
    let state = format!("HOLDFAST_HOOK_RUN={}", folder.path().join("run").display());
    let agent = site.add_agent_with(&["env", &client, &state], &format!("[hooks]\nfolder = {hooks:?}\n"))?;
    let machine = site.only_machine()?;
    site.protect(&machine, &[disk.device.path()], "1h")?;
    let writer = Writer::start(&server)?;
    site.wait_for_points(&machine, 1, PATIENCE)?;
    wait_for("some rows", PATIENCE, || Ok((writer.answered.load(SeqCst) > 50).then_some(())))?;
    let ask = ["point", "create", &machine, "--wait", "--app-consistent"];
    for _ in 0..POINTS {
        let before = writer.answered.load(SeqCst);
        let point =
            site.cli(&ask).with_context(|| format!("the agent's log: {}", agent.log()))?["point"].clone();
        ensure!(point["consistency"] == "app" && point["hooks"][0] == "50-mysql", "{point}");
        check(&site, &machine, point["id"].as_str().context("its id")?, &disk, before)?;
        // It was let go on.
        wait_for("more rows", PATIENCE, || Ok((writer.answered.load(SeqCst) > before + 20).then_some(())))?;
    }

    // Without a server there is nothing to lock: no app-consistent point, and the reason is said.
    drop(writer);
    drop(server);
    let refused = format!("{:#}", site.cli(&ask).err().context("a point without its server")?);
    ensure!(refused.contains("50-mysql"), "{refused}");
    Ok(())
}
