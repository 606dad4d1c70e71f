//! A PostgreSQL server on a disk of the tests' own, and pgbench as its load.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::file_system::run;

/// The newest installed server's programs.
#[must_use]
pub fn programs() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> =
        fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|entry| entry.path().join("bin")).collect();
    versions.retain(|folder| folder.join("postgres").is_file());
    versions.sort();
    versions.pop()
}

/// A server with its data in one folder; stopped at once on drop.
#[derive(Debug)]
pub struct Server {
    /// Folder of its programs.
    pub programs: PathBuf,
    /// Its data.
    pub data: PathBuf,
    /// Folder of its socket and its log.
    pub sockets: PathBuf,
}

fn as_postgres(program: &Path) -> Command {
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program).current_dir("/");
    command
}

impl Server {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// It does not start.
    pub fn create(programs: &Path, data: &Path, wal: &Path, sockets: &Path) -> Result<Self> {
        for folder in [data, wal] {
            fs::create_dir(folder)?;
            run(Command::new("chown").arg("postgres").arg(folder))?;
        }
        let mut make = as_postgres(&programs.join("initdb"));
        make.args(["--data-checksums", "--no-sync", "-A", "trust", "-D"]).arg(data).arg("--waldir").arg(wal);
        run(&mut make)?;
        let server = Self { programs: programs.into(), data: data.into(), sockets: sockets.into() };
        server.start()?;
        Ok(server)
    }

    /// Starts it on what is in its folder.
    ///
    /// # Errors
    /// It does not start; the text has its log.
    pub fn start(&self) -> Result<()> {
        let options = format!("-k {} -c listen_addresses='' -c log_checkpoints=on", self.sockets.display());
        let mut start = as_postgres(&self.programs.join("pg_ctl"));
        start
            .args(["-w", "-t", "60", "-D"])
            .arg(&self.data)
            .arg("-l")
            .arg(self.log())
            .args(["-o", &options, "start"]);
        // It leaves the server behind, which must not keep our pipes.
        let ended = start.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(
            ended.success(),
            "the server does not start: {}",
            fs::read_to_string(self.log()).unwrap_or_default()
        );
        Ok(())
    }

    /// What it logs to.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.sockets.join("server.log")
    }

    /// Has it run a statement; what it answers.
    ///
    /// # Errors
    /// It refuses.
    pub fn ask(&self, sql: &str) -> Result<String> {
        run(self.client("psql").args(["-qXAt", "-d", "postgres", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// One of its clients, connected to it.
    #[must_use]
    pub fn client(&self, program: &str) -> Command {
        let mut command = as_postgres(&self.programs.join(program));
        command.arg("-h").arg(&self.sockets);
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut stop = as_postgres(&self.programs.join("pg_ctl"));
        let stopped = run(stop.args(["-w", "-m", "immediate", "-D"]).arg(&self.data).arg("stop"));
        if let Err(error) = stopped {
            eprintln!("{error:#}");
        }
    }
}

/// pgbench until dropped.
#[derive(Debug)]
pub struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Fills a database for pgbench and starts it.
///
/// # Errors
/// It does not start.
pub fn load(server: &Server) -> Result<Load> {
    run(server.client("pgbench").args(["-q", "-i", "-s", "2", "postgres"]))?;
    let mut bench = server.client("pgbench");
    bench.args(["-c", "2", "-T", "3600", "postgres"]).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Load(bench.spawn()?))
}

/// A folder for sockets and logs that the server's user may write to.
///
/// # Errors
/// It cannot be made.
pub fn open_folder() -> Result<TempDir> {
    let folder = TempDir::with_prefix("holdfast-postgres-")?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

/// A folder of freeze hooks with the one for PostgreSQL, below `folder`.
///
/// # Errors
/// It cannot be made.
pub fn freeze_hooks(folder: &Path) -> Result<PathBuf> {
    let hooks = folder.join("freeze-hook.d");
    fs::create_dir(&hooks)?;
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/freeze-hook.d/postgresql");
    let hook = hooks.join("50-postgresql");
    fs::copy(shipped, &hook)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    Ok(hooks)
}
