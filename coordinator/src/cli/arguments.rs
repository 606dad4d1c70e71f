//! The command line.
//!
//! Owns arguments and their help; man pages and completions are made of it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use holdfast_coordinator::points::retention::RetentionRule;

use crate::{duration::parse_duration, groups::GroupCommand, plan::PlanCommand, thresholds};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the coordinator refused, or something failed
  2  wrong arguments
  3  the coordinator cannot be reached
  4  the job failed or was cancelled

MACHINE is a host name, an id, or the first digits of an id (at least 4).
With --json every command prints one JSON document, errors included (on standard error:
{\"code\", \"message\", \"advice\"}); fields are only ever added.

Getting started:
  holdfast quickstart                     see it work on this machine
  holdfast token create                   then, on the machine to protect:
                                          holdfast-agent enroll --coordinator HOST:PORT --token TOKEN
  holdfast machine show web-1             choose its disks
  holdfast protect web-1 --disk /dev/vda
  holdfast status --watch
  holdfast failover web-1 --point latest --attach";

/// Protects machines continuously and fails them over.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// The coordinator: path of its socket or of its data folder, or https://HOST:PORT (see `holdfast login`; the token may
    /// also be given by HOLDFAST_TOKEN). Default: what the configuration file (~/.config/holdfast/config.toml,
    /// /etc/holdfast/config.toml) says under `coordinator`, or /var/lib/holdfast/holdfast.sock
    #[arg(long, global = true, env = "HOLDFAST_COORDINATOR", value_name = "PLACE")]
    pub(crate) coordinator: Option<String>,

    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enrolment tokens
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// List the machines
    Machines,
    /// Show or revoke a machine
    Machine {
        #[command(subcommand)]
        command: MachineCommand,
    },
    /// Protect disks of a machine, or change how it is protected
    #[command(after_help = "\
Examples:
  holdfast protect web-1 --disk /dev/vda --disk /dev/vdb
  holdfast protect web-1 --disk /dev/vda --interval 5s --retention 72h
  holdfast protect web-1 --interval 1s          changes the interval only
  holdfast protect web-1 --retention 24h,1h:30d,1d:365d
      keeps every point for 24 hours, then one an hour until they are 30 days old, then one a day for a year

The first copy begins at once; points are made once it is complete.")]
    Protect(ProtectOptions),
    /// End the protection of disks; what was replicated stays until its retention ends
    #[command(after_help = "\
Examples:
  holdfast unprotect web-1 --disk /dev/vdb
  holdfast unprotect web-1                      all its disks")]
    Unprotect {
        /// Name or id
        machine: String,
        /// Disk to protect no more (device node or id); all if none is named
        #[arg(long, value_name = "PATH")]
        disk: Vec<String>,
    },
    /// Health, lag, RPO and what is pending, for every machine and disk
    Status {
        /// Show it again every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// Prove that a machine boots: start a copy of it apart from everything, wait for a sign of life, clean up
    #[command(after_help = "\
Examples:
  holdfast drill web-1                              boots the newest processed point and waits for a login prompt
  holdfast drill web-1 --probe 'app ready' --time-limit 5m
  holdfast drill web-1 --history                    what earlier drills have shown
  holdfast protect web-1 --drill daily              has it done by itself (weekly, 6h, off)

The copy has no network. Its serial console is read for the probe; a picture of its screen is kept. Whatever happens, the copy
is removed at the end, also after the coordinator was started again in the middle.")]
    Drill(DrillOptions),
    /// Whether a machine will boot at the target, and what speaks against it
    #[command(after_help = "\
Examples:
  holdfast readiness web-1            what the last look into its replica has found
  holdfast readiness web-1 --now      looks again, at its newest processed point

A look reads the newest processed point: partition table, boot loader, kernel and initramfs, fstab, network settings. It is
done after the first point, once a day, and when the machine's hardware has changed. File systems other than ext2, ext3
and ext4 (XFS, btrfs, LVM, NTFS) are not looked into, and the answer says so: only a test failover proves that these boot.")]
    Readiness {
        /// Name or id
        machine: String,
        /// Look now
        #[arg(long)]
        now: bool,
    },
    /// Show or set when a machine's state is worth a warning, and when it is critical
    #[command(after_help = "\
Examples:
  holdfast thresholds web-1
  holdfast thresholds web-1 --lag 30s,5m --app 2h,6h
  holdfast thresholds web-1 --lag default")]
    Thresholds(ThresholdOptions),
    /// List a machine's recovery points; of all machines the newest of every kind, and its age; or compare two
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  holdfast points              what each choice would give each machine now
  holdfast points web-1        all its points, and why others are not offered"
    )]
    Points {
        #[command(subcommand)]
        command: Option<PointsCommand>,
        /// Name or id
        machine: Option<String>,
        /// Most points to show, the newest
        #[arg(long, value_name = "COUNT")]
        limit: Option<u32>,
    },
    /// Make a recovery point now
    Point {
        #[command(subcommand)]
        command: PointCommand,
    },
    /// Which points are kept, and why
    Retention {
        #[command(subcommand)]
        command: RetentionCommand,
    },
    /// Fail one or more machines over: the target becomes the machine, and its source is fenced
    #[command(after_help = "\
Examples:
  holdfast failover web-1 db-1 --point latest-multi-vm --dry-run
      shows what each machine would get and lose, and changes nothing
  holdfast failover web-1 --point latest --attach --writable
      serves the disks as NBD exports at once, for a machine that writes to them
  holdfast failover web-1 --point latest-processed --image /srv/images --format qcow2
      writes verified images into a folder on the coordinator's host, and switches when they are complete
  holdfast failover web-1 --point latest --image /srv/images --update
      brings the images that an earlier job left there to that point; until it is done they
      have no name, and cancelling the failover removes them

Steps: prerequisites check, (shut down source), synchronize, choose and process the point, switch, start. Replication
goes on until the switch; from then on nothing of the source is taken. Then:
  holdfast change-point web-1 --point TIME|ID     another point, at once
  holdfast commit web-1                           keep it; history stays as long as retention wants it
  holdfast cancel web-1                           back to the source at any step, without a resync

To look at a point while the source goes on, use `holdfast test-failover`; to lose nothing, and only then fail over, use
`holdfast planned-failover`.

Points:
  latest             the newest complete one; processes it first if need be (least data lost)
  latest-processed   the newest that is ready (least time lost)
  latest-app-consistent
                     the newest whose applications were made consistent
  latest-multi-vm, latest-multi-vm-app-consistent
                     the newest that all machines of the group have in common; a machine of no group goes to its own
  TIME               the newest at or before it: 2026-11-25T22:00:00Z, or local time \"2026-11-25 22:00:00\"
  ID                 this one; see `holdfast points`

Several machines are failed over together: if no point can be chosen for one of them, nothing is begun.")]
    Failover(FailoverOptions),
    /// Try a point on a copy while the source goes on and replicates; or clean such a test up
    #[command(after_help = "\
Examples:
  holdfast test-failover web-1 --point latest --attach
      serves the disks as read-only NBD exports at once; `--cleanup` ends that
  holdfast test-failover web-1 --cleanup
      removes everything that the test made
  holdfast test-failover web-1 --point latest-processed --image /srv/images --format qcow2
      writes verified images, which stay; the test is over when they are complete
  holdfast test-failover web-1 --point latest --image /srv/images --update
      brings the images that an earlier job left there to that point

Points are named as in `holdfast failover --help`. Several tests may stand at a time, in any stage of the machine;
`--cleanup` ends all of them.")]
    TestFailover(TestFailoverOptions),
    /// Fail over without losing anything: the source stops, gives what it has written last, and is fenced
    #[command(after_help = "\
Examples:
  holdfast planned-failover web-1 --attach

The source's agent runs what its settings name to stop applications, and freezes the file systems; then the last point is
made, and it is proved that nothing was written behind it. Only then the target becomes the machine. If anything of that
fails, the source goes on as if nothing had been asked.")]
    PlannedFailover(PlannedFailoverOptions),
    /// Go to another point after a failover, also after its commit; what the target has written since is given up
    #[command(after_help = "\
Examples:
  holdfast change-point web-1 --point \"2026-11-25 22:00:00\"
  holdfast change-point web-1 --point latest")]
    ChangePoint {
        /// Name or id
        machine: String,
        /// As in `holdfast failover --help`
        #[arg(long, value_name = "POINT")]
        point: String,
        /// Return at once, without waiting for the job
        #[arg(long)]
        no_wait: bool,
    },
    /// Keep a failover: it cannot be cancelled any more. Deletes nothing; points stay until retention ends them
    Commit {
        /// Name or id
        machine: String,
    },
    /// Take a failover back, at whatever step it is: the source is the machine again and goes on replicating, without a
    /// resync. What the target has written is given up
    Cancel {
        /// Name or id
        machine: String,
    },
    /// Make the source the machine again after a commit, and give up what the target has written; its disks are compared
    /// with the replica, and only what differs is sent
    Resume {
        /// Name or id
        machine: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Protect a machine that runs at its target (after `commit`): points of it are made at the policy's interval, and it can
    /// go back to its source
    #[command(
        after_help = "What the machine writes at its target goes into the same history as what it wrote at its source: every \
        older point stays. Failovers with `--attach --writable` or `--vm` (also with --stream) can be protected."
    )]
    Reprotect {
        /// Name or id
        machine: String,
        /// Do not wait for the first point
        #[arg(long)]
        no_wait: bool,
    },
    /// Bring a machine back to its source, with everything that it wrote at its target: what differs is written to the
    /// source's disks while the machine runs, then it is stopped, the rest follows, and the source is the machine again
    #[command(
        after_help = "The source's agent must run, and nobody may use the disks there: unmount them, or boot the old machine from \
        something else. `holdfast job cancel` goes back to the target at any step before the switch."
    )]
    Failback {
        /// Name or id
        machine: String,
        /// Do not wait until it is done
        #[arg(long)]
        no_wait: bool,
    },
    /// List the jobs
    Jobs,
    /// Show, cancel, retry or continue a job
    Job {
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Replication groups: machines that are cut at the same instant
    Group {
        #[command(subcommand)]
        command: GroupCommand,
    },
    /// Recovery plans: machines in groups that are failed over in an order, with scripts and manual actions between
    Plan {
        #[command(subcommand)]
        command: PlanCommand,
    },
    /// Who changed what, newest first
    #[command(after_help = "\
Examples:
  holdfast audit --since 24h
  holdfast audit --since 2026-11-25T22:00:00Z --limit 1000")]
    Audit {
        /// Most entries to show
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: u32,
        /// Only what was done since: an age (24h, 7d) or a time
        #[arg(long, value_name = "AGE|TIME")]
        since: Option<String>,
    },
    /// Check all stored data against its digests: how far that is, or begin a pass now
    #[command(after_help = "\
Examples:
  holdfast scrub status
  holdfast scrub start web-1

Stored data is read again in the background: new data soon after it came, all of it once per period (settings
`scrub_days`, `scrub_bytes_per_second_min`, `verify_bytes_per_second`). Damage is named with the points it hits
(`holdfast points`), and the source sends it again if it lives.")]
    Scrub {
        #[command(subcommand)]
        command: ScrubCommand,
    },
    /// Compare every block of a machine's disks with its source, while it is protected
    #[command(after_help = "\
Examples:
  holdfast compare start web-1
  holdfast compare status
  holdfast compare cancel web-1

The agent reads its disks at the rate of `holdfast protect --scan-rate`; only digests travel. What is written meanwhile is
known from tracking and sent anew. A block that differs although nothing was written to it is an alarm: it is named with the
points it hits (`holdfast points`), never served, and sent again. A comparison goes on after a restart of either side.")]
    Compare {
        #[command(subcommand)]
        command: CompareCommand,
    },
    /// See it all work on this machine: protect a disk, make points, fail over, check
    Quickstart(QuickstartArguments),
    /// Print shell completions
    #[command(after_help = "Example:\n  holdfast completions bash > /etc/bash_completion.d/holdfast")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Tokens of operators who reach the coordinator over the network
    Operator {
        #[command(subcommand)]
        command: OperatorCommand,
    },
    /// Log in at a coordinator on the network, and keep that in ~/.config/holdfast/config.toml
    #[command(after_help = "\
Examples:
  holdfast login recovery.example.org:4434 --token hfo1....
  holdfast login recovery.example.org:4434 --token - < token     the token stays out of the list of processes

The token carries the fingerprint of the coordinator's CA: a host that does not hold it never sees the token.")]
    Login(LoginOptions),
    /// Forget the login; the token itself works until it is revoked or expires
    Logout,
    /// Say who you are to the coordinator, and what you may do
    Who,
    /// Write man pages into a folder
    #[command(after_help = "Example:\n  holdfast man /usr/local/share/man/man1")]
    Man {
        /// The folder; made if it does not exist
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QuickstartArguments {
    /// Seconds for which a writer runs and points are made
    #[arg(long, default_value_t = 20)]
    pub(crate) seconds: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a one-time token for `holdfast-agent enroll`
    #[command(after_help = "\
Examples:
  holdfast token create
  holdfast token create --life 15m --label \"web-1, ticket 4711\"
  holdfast token create --machine web-1         enrols a machine again that was revoked or reinstalled")]
    Create(TokenOptions),
}

#[derive(Debug, Args)]
pub(crate) struct TokenOptions {
    /// How long it may be used (15m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "1h")]
    pub(crate) life: Duration,
    /// A remark for the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) label: String,
    /// A machine that is to be enrolled again and keeps its history
    #[arg(long, value_name = "MACHINE")]
    pub(crate) machine: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ThresholdOptions {
    /// Name or id
    pub(crate) machine: String,
    /// Age of the newest point; by default 3 and 10 intervals
    #[arg(long, value_name = "WARNING,CRITICAL", value_parser = thresholds::parse_ages)]
    pub(crate) lag: Option<thresholds::Set>,
    /// Time from a cut until it is durable here; by default none
    #[arg(long, value_name = "WARNING,CRITICAL", value_parser = thresholds::parse_ages)]
    pub(crate) rpo: Option<thresholds::Set>,
    /// Age of the newest app-consistent point; by default none
    #[arg(long, value_name = "WARNING,CRITICAL", value_parser = thresholds::parse_ages)]
    pub(crate) app: Option<thresholds::Set>,
    /// Cuts that are void in a row, worth a warning; by default 3
    #[arg(long, value_name = "COUNT")]
    pub(crate) voided: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct LoginOptions {
    /// Where the coordinator listens for operators (its --api-listen)
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: String,
    /// Token made by `holdfast operator create`; - reads it from standard input
    #[arg(long, value_name = "TOKEN", env = "HOLDFAST_TOKEN", hide_env_values = true)]
    pub(crate) token: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Make a token for an operator; it is shown once
    #[command(after_help = "\
Examples:
  holdfast operator create anna --role operator --expires 30d
  holdfast operator create dashboard --role viewer --expires 365d

Roles:
  viewer     looks: status, points, jobs, audit
  operator   also protects, makes points, fails over (images only below the coordinator's `image_folders`)
  admin      also makes tokens and operators, revokes, shortens retention")]
    Create {
        /// Name that will stand in the audit
        name: String,
        /// What the operator may do
        #[arg(long, value_enum)]
        role: RoleName,
        /// How long the token works (at most 1825d)
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "90d")]
        expires: Duration,
    },
    /// List operators and what they may do
    List,
    /// Make an operator's token worthless at once
    Revoke {
        /// Name of the operator
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Looks
    Viewer,
    /// Also protects, makes points, fails over
    Operator,
    /// Also decides who may do what, revokes, shortens history
    Admin,
}

impl RoleName {
    /// As the interface names it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

/// A drill.
#[derive(Debug, Args)]
pub(crate) struct DrillOptions {
    /// Name or id
    pub(crate) machine: String,
    /// Which point, as `holdfast failover --point` takes it
    #[arg(long, default_value = "latest-processed")]
    pub(crate) point: String,
    /// Regular expression for what the console says when the machine has booted (by its policy: login: if never set)
    #[arg(long, value_name = "REGEX")]
    pub(crate) probe: Option<String>,
    /// How long that may take (by its policy: 10m if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) time_limit: Option<Duration>,
    /// Do not wait for its end
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Show what earlier drills have shown, and begin none
    #[arg(long, conflicts_with_all = ["probe", "time_limit", "no_wait"])]
    pub(crate) history: bool,
}

/// Reads "daily", "weekly", "off" or a time.
fn parse_every(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        "daily" => Ok(Duration::from_hours(24)),
        "weekly" => Ok(Duration::from_hours(7 * 24)),
        time => parse_duration(time)
            .map_err(|_| format!("`{time}` is no rhythm; write daily, weekly, 6h, or off")),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Show a machine, its hardware, disks and health
    Show {
        /// Name or id
        machine: String,
    },
    /// Reach the serial console of a machine that runs from a recovery point; Ctrl-] ends it, the machine goes on
    #[command(after_help = "\
Examples:
  holdfast machine console web-1                on the coordinator's host
  holdfast machine console web-1 --log          the end of what it printed; from anywhere")]
    Console {
        /// Name or id
        machine: String,
        /// Print the end of its log instead
        #[arg(long)]
        log: bool,
    },
    /// Take a picture of the screen of a machine that runs from a recovery point
    #[command(after_help = "\
Examples:
  holdfast machine screenshot web-1 screen.png")]
    Screenshot {
        /// Name or id
        machine: String,
        /// Where the picture goes (PNG); a file that is there is replaced
        file: std::path::PathBuf,
    },
    /// Close a machine's connection and refuse it from now on; its history stays
    Revoke {
        /// Name or id
        machine: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// Have a machine make a recovery point now
    Create {
        /// Name or id
        machine: String,
        /// Make applications consistent first, with the freeze hooks on the machine; if one fails there is no point
        #[arg(long)]
        app_consistent: bool,
        /// Wait until it is durable
        #[arg(long)]
        wait: bool,
        /// How long to wait at most
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2m")]
        time_limit: Duration,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RetentionCommand {
    /// Show what retention would keep and remove now, and why; changes nothing
    #[command(after_help = "\
Examples:
  holdfast retention plan web-1
  holdfast retention plan web-1 --retention 24h,1h:30d,1d:365d
      what that rule would do; `holdfast protect web-1 --retention RULE` then sets it

A machine's own rule is applied every few seconds by itself. Points that a job needs, the newest
point and the newest processed one are never removed.")]
    Plan {
        /// Name or id
        machine: String,
        /// Try another rule than the machine's own
        #[arg(long, value_name = "RULE")]
        retention: Option<RetentionRule>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CompareCommand {
    /// Per disk: when it was last compared, what came of it, and how far the comparison under way is
    Status,
    /// Begin now
    Start {
        /// Name or id
        machine: String,
    },
    /// End the one under way; what it found stays
    Cancel {
        /// Name or id
        machine: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Per disk: what was verified, when all was last read, and how far a pass is
    Status,
    /// Begin a pass over all stored data now, at the rate of verification
    Start {
        /// Name or id; all machines if not given
        machine: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Show a job: steps, times, progress, messages
    Show {
        /// Its id, or an end of it that fits no other
        job: String,
        /// Follow it until it is over
        #[arg(long)]
        follow: bool,
    },
    /// End a job and undo what it did; ends an attachment
    Cancel {
        /// Its id, or an end of it that fits no other
        job: String,
    },
    /// Try a failed job again from the step that failed
    Retry {
        /// Its id, or an end of it that fits no other
        job: String,
    },
    /// Let a job go on that waits for something to be done by hand
    Continue {
        /// Its id, or an end of it that fits no other
        job: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProtectOptions {
    /// Name or id
    pub(crate) machine: String,
    /// Disk to protect: its device node on the machine, as `holdfast machine show` lists them
    #[arg(long, value_name = "PATH")]
    pub(crate) disk: Vec<String>,
    /// Time between recovery points (1s to 24h; 10s if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) interval: Option<Duration>,
    /// How long points are kept (24h if never set): TIME for all, then SPACING:AGE for older ones, such as
    /// 24h,1h:30d,1d:365d; each spacing is a multiple of the one before
    #[arg(long, value_name = "RULE")]
    pub(crate) retention: Option<RetentionRule>,
    /// Longest time that writes may be held for a point (2s if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) hold: Option<Duration>,
    /// Bound of sending in MiB per second; 0 means none
    #[arg(long, value_name = "MIB")]
    pub(crate) send_rate: Option<u64>,
    /// Bound of reading for the first copy and resyncs, in MiB per second; 0 means none
    #[arg(long, value_name = "MIB")]
    pub(crate) scan_rate: Option<u64>,
    /// Time between app-consistent points, made with the freeze hooks on the machine (1m to 24h; 0s for none)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) app_consistent_interval: Option<Duration>,
    /// What becomes of such a point, or of the machine's part in a group's, if a hook fails (crash if never set)
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) on_hook_failure: Option<HookFailure>,
    /// Time between drills that begin by themselves (daily, weekly, 1h and more, or off; off if never set)
    #[arg(long, value_name = "RHYTHM", value_parser = parse_every)]
    pub(crate) drill: Option<Duration>,
    /// Regular expression for what its console says when it has booted (login: if never set)
    #[arg(long, value_name = "REGEX")]
    pub(crate) drill_probe: Option<String>,
    /// How long a drill waits for that (10m if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(crate) drill_time_limit: Option<Duration>,
}

/// What becomes of a point whose applications could not be made consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HookFailure {
    /// It is kept as a crash-consistent one, with the reason
    Crash,
    /// There is no point, nor one of its group, and the reason is shown
    Void,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["attach", "image", "vm", "dry_run"])))]
pub(crate) struct FailoverOptions {
    /// Names or ids
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// latest, latest-processed, latest-app-consistent, latest-multi-vm, latest-multi-vm-app-consistent, a time, or an id
    #[arg(long, value_name = "POINT")]
    pub(crate) point: String,
    /// Show what each machine would get and lose, and why newer cuts would not be used; change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Serve the disks as NBD exports, read-only, until the job is cancelled
    #[arg(long)]
    pub(crate) attach: bool,
    /// Let clients write to them: what they write is kept beside the point until the job is cancelled or the point changed
    #[arg(long, requires = "attach", conflicts_with_all = ["image", "vm"])]
    pub(crate) writable: bool,
    /// Write images into this folder on the coordinator's host; of several machines into a folder each
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Run the machine on the coordinator's host
    #[arg(long)]
    pub(crate) vm: bool,
    /// Move the running machine to images of its own behind its back
    #[arg(long, requires = "vm", conflicts_with_all = ["attach", "image"])]
    pub(crate) stream: bool,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    pub(crate) format: ImageFormat,
    /// Where DIR holds an unchanged image of another point, write only what differs onto it
    #[arg(long, requires = "image", conflicts_with_all = ["attach", "vm"])]
    pub(crate) update: bool,
    /// Ask the source to stop first (see `holdfast planned-failover --help`); go on whether it does or not
    #[arg(long)]
    pub(crate) shutdown: bool,
    /// Return at once, without waiting for the job
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["attach", "image", "vm", "cleanup"])))]
pub(crate) struct TestFailoverOptions {
    /// Names or ids
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// As in `holdfast failover --help`
    #[arg(long, value_name = "POINT", default_value = "latest")]
    pub(crate) point: String,
    /// Remove what the test has made
    #[arg(long)]
    pub(crate) cleanup: bool,
    /// Serve the disks as NBD exports, read-only, until the test is cleaned up
    #[arg(long)]
    pub(crate) attach: bool,
    /// Let clients write to them: what they write is kept beside the point until the job is cancelled or the point changed
    #[arg(long, requires = "attach", conflicts_with_all = ["image", "vm"])]
    pub(crate) writable: bool,
    /// Write images into this folder on the coordinator's host; of several machines into a folder each
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Run the machine on the coordinator's host
    #[arg(long)]
    pub(crate) vm: bool,
    /// Move the running machine to images of its own behind its back
    #[arg(long, requires = "vm", conflicts_with_all = ["attach", "image"])]
    pub(crate) stream: bool,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    pub(crate) format: ImageFormat,
    /// Where DIR holds an unchanged image of another point, write only what differs onto it
    #[arg(long, requires = "image", conflicts_with_all = ["attach", "vm"])]
    pub(crate) update: bool,
    /// Return at once, without waiting for the job
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("into").required(true).args(["attach", "image", "vm"])))]
pub(crate) struct PlannedFailoverOptions {
    /// Names or ids
    #[arg(required = true, value_name = "MACHINE")]
    pub(crate) machines: Vec<String>,
    /// Serve the disks as NBD exports, read-only
    #[arg(long)]
    pub(crate) attach: bool,
    /// Let clients write to them: what they write is kept beside the point until the job is cancelled or the point changed
    #[arg(long, requires = "attach", conflicts_with_all = ["image", "vm"])]
    pub(crate) writable: bool,
    /// Write images into this folder on the coordinator's host; of several machines into a folder each
    #[arg(long, value_name = "DIR")]
    pub(crate) image: Option<PathBuf>,
    /// Run the machine on the coordinator's host
    #[arg(long)]
    pub(crate) vm: bool,
    /// Move the running machine to images of its own behind its back
    #[arg(long, requires = "vm", conflicts_with_all = ["attach", "image"])]
    pub(crate) stream: bool,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = ImageFormat::Raw)]
    pub(crate) format: ImageFormat,
    /// Return at once, without waiting for the job
    #[arg(long)]
    pub(crate) no_wait: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ImageFormat {
    /// The bytes of the disk, with holes
    Raw,
    /// QEMU's format
    Qcow2,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointsCommand {
    /// Show which ranges of the disks were written between two points
    #[command(after_help = "\
Examples:
  holdfast points diff web-1 0192f0c1-... latest
  holdfast points diff web-1 0192f0c1-... 0192f0c2-... --ranges 100000 --json

Only the index is asked: it takes as long as the change is large, not the disk. Blocks that were
written with what they held before count as changed.")]
    Diff(DiffOptions),
}

#[derive(Debug, Args)]
pub(crate) struct DiffOptions {
    /// Name or id
    pub(crate) machine: String,
    /// latest, latest-processed, or a point's id
    #[arg(value_name = "POINT")]
    pub(crate) from: String,
    /// The point to compare it with
    #[arg(value_name = "POINT")]
    pub(crate) to: String,
    /// Most ranges to show of each disk; 1000 with --json and 20 without, if not said
    #[arg(long, value_name = "COUNT")]
    pub(crate) ranges: Option<usize>,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::Arguments;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    /// A requirement is waived where what is required cannot be there; the conflict has to be named too.
    #[test]
    fn what_belongs_to_another_target_is_refused() {
        let parse = |options: &str| {
            let words = format!("holdfast failover web-1 --point latest {options}");
            Arguments::try_parse_from(words.split_whitespace()).map(drop)
        };
        for good in ["--attach", "--attach --writable", "--vm --stream", "--image /i --update"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["--writable", "--stream", "--update"] {
            for target in ["--attach", "--vm", "--image /i"] {
                let fits = [("--writable", "--attach"), ("--stream", "--vm"), ("--update", "--image /i")];
                let both = format!("{target} {bad}");
                assert_eq!(parse(&both).is_ok(), fits.contains(&(bad, target)), "{both}");
            }
        }
    }
}
