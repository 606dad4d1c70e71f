//! Commands about replication groups.
//!
//! Owns their arguments, what is asked, and what is printed.

use std::{fmt::Write as _, time::Duration};

use clap::{Args, Subcommand};
use holdfast_coordinator::{
    api::group_shapes::{
        GroupPointRequest, GroupPointShape, GroupPointsShape, GroupRequest, GroupShape, VoidedGroupCutShape,
    },
    registry::thresholds::Ages,
};

use crate::{
    client::{Client, escape},
    duration::{self, parse_duration},
    output::{Failure, Output},
    tables,
    thresholds::{Set, parse_ages},
};

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group of machines that are cut at the same instant
    #[command(after_help = "\
Examples:
  holdfast group create shop web-1 db-1
  holdfast group create shop web-1 db-1 --interval 30s --app-consistent-interval 15m

Each machine goes on with its own replication; machines join and leave at any time without a new copy.
A machine is in one group at most.")]
    Create {
        /// Name: letters, digits, dots, dashes, underscores
        name: String,
        /// Names or ids
        machines: Vec<String>,
        #[command(flatten)]
        rules: Rules,
    },
    /// Have machines join a group
    Add {
        /// The group
        group: String,
        /// Names or ids
        #[arg(required = true)]
        machines: Vec<String>,
    },
    /// Have machines leave a group; they stay protected
    Remove {
        /// The group
        group: String,
        /// Names or ids
        #[arg(required = true)]
        machines: Vec<String>,
    },
    /// Change how a group is cut
    Set {
        /// The group
        group: String,
        #[command(flatten)]
        rules: Rules,
    },
    /// Show groups, their machines, newest points and void cuts
    Show {
        /// The group; all if none is named
        group: Option<String>,
    },
    /// List a group's points
    Points {
        /// The group
        group: String,
        /// Most points to show, the newest
        #[arg(long, value_name = "COUNT")]
        limit: Option<usize>,
    },
    /// End a group; its machines and their points stay
    Delete {
        /// The group
        group: String,
    },
    /// Make a group point now
    Point {
        #[command(subcommand)]
        command: GroupPointCommand,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupPointCommand {
    /// Cut all machines of a group at the same instant
    Create {
        /// The group
        group: String,
        /// Make applications consistent first (freeze hooks on every machine)
        #[arg(long)]
        app_consistent: bool,
        /// How long to wait at most until it is durable
        #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2m")]
        time_limit: Duration,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Rules {
    /// Time between group points (1s to 24h; 10s if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    interval: Option<Duration>,
    /// Longest time that a machine that holds writes waits for the others (10ms to 2s; 500ms if never set)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// Time between app-consistent group points (1m to 24h; 0s means none by themselves)
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    app_consistent_interval: Option<Duration>,
    /// Ages of the newest group point that are worth a warning, and critical ("1m,5m"; "default": 3 and 10 intervals and 5s)
    #[arg(long, value_name = "AGE,AGE", value_parser = parse_ages)]
    lag: Option<Set>,
}

pub(crate) async fn run(client: &Client, output: Output, command: GroupCommand) -> Result<(), Failure> {
    match command {
        GroupCommand::Create { name, machines, rules } => {
            let request = GroupRequest { name, add: machines, ..rules.request() };
            let group: GroupShape = client.post("/v1/groups", &request).await?;
            output.answer(&group, one)
        }
        GroupCommand::Add { group, machines } => {
            change(client, output, &group, &GroupRequest { add: machines, ..GroupRequest::default() }).await
        }
        GroupCommand::Remove { group, machines } => {
            change(client, output, &group, &GroupRequest { remove: machines, ..GroupRequest::default() })
                .await
        }
        GroupCommand::Set { group, rules } => {
            let request = rules.request();
            if request == GroupRequest::default() {
                let advice = "name a rule; `holdfast group set --help` lists them";
                return Err(Failure::usage("there is nothing to change", advice));
            }
            change(client, output, &group, &request).await
        }
        GroupCommand::Show { group: Some(group) } => {
            let group: GroupShape = client.get(&path(&group)).await?;
            output.answer(&group, one)
        }
        GroupCommand::Show { group: None } => {
            let groups: Vec<GroupShape> = client.get("/v1/groups").await?;
            output.answer(&groups, |groups| match groups.as_slice() {
                [] => "There is no group; `holdfast group create` makes one.".to_owned(),
                groups => groups.iter().map(one).collect::<Vec<_>>().join("\n"),
            })
        }
        GroupCommand::Points { group, limit } => {
            let limit = limit.map(|limit| format!("?limit={limit}")).unwrap_or_default();
            let points: GroupPointsShape = client.get(&format!("{}/points{limit}", path(&group))).await?;
            output.answer(&points, listed)
        }
        GroupCommand::Delete { group } => {
            let group: GroupShape = client.post(&format!("{}/delete", path(&group)), &()).await?;
            output.answer(&group, |group| {
                format!("Group {} is no more; its machines stay protected, their points stay.", group.name)
            })
        }
        GroupCommand::Point { command: GroupPointCommand::Create { group, app_consistent, time_limit } } => {
            create_point(client, output, &group, app_consistent, time_limit).await
        }
    }
}

async fn change(client: &Client, output: Output, group: &str, request: &GroupRequest) -> Result<(), Failure> {
    let group: GroupShape = client.post(&path(group), request).await?;
    output.answer(&group, one)
}

async fn create_point(
    client: &Client,
    output: Output,
    group: &str,
    application: bool,
    wait: Duration,
) -> Result<(), Failure> {
    let request = GroupPointRequest { application, wait_ms: millis(wait) };
    let made: Option<GroupPointShape> = client.post(&format!("{}/points", path(group)), &request).await?;
    let Some(point) = made else {
        let advice = "the machines were cut; `holdfast group points` will list it when all has arrived";
        return Err(Failure::failed("the group point did not become durable in time", advice));
    };
    output.answer(&point, |point| {
        let mut text = format!(
            "Group point {} of {}, {}-consistent; the holds began within {} of each other.\n",
            point.id,
            tables::local(&point.at),
            point.consistency,
            micros(point.spread_us)
        );
        for member in &point.members {
            let (name, held) = (&member.name, micros(member.hold_us));
            let _infallible = writeln!(text, "  {name}: point {}, writes held for {held}", member.point);
        }
        text
    })
}

fn one(group: &GroupShape) -> String {
    let mut text = format!(
        "Group {} ({}): a point every {}",
        group.name,
        group.id,
        duration::show(Duration::from_millis(group.interval_ms))
    );
    if group.application_interval_ms > 0 {
        let interval = duration::show(Duration::from_millis(group.application_interval_ms));
        let _infallible = write!(text, ", app-consistent every {interval}");
    }
    if let Some(lag) = group.lag {
        let show = |age| duration::show(Duration::from_millis(age));
        let _infallible =
            write!(text, "; late from {}, critical from {}", show(lag.warning_ms), show(lag.critical_ms));
    }
    text.push('\n');
    for finding in &group.status.findings {
        let _infallible =
            writeln!(text, "  {}: {}; {}", tables::level(finding.level), finding.reason, finding.advice);
    }
    let member = |member: &holdfast_coordinator::api::group_shapes::GroupMemberShape| {
        let state = if member.connected { "" } else { " (not connected)" };
        format!("{}{state}", member.name)
    };
    let members: Vec<String> = group.members.iter().map(member).collect();
    let members = if members.is_empty() { "none".to_owned() } else { members.join(", ") };
    let _infallible = writeln!(text, "  machines: {members}");
    for (kind, newest) in
        [("newest point", &group.newest), ("newest app-consistent point", &group.newest_application)]
    {
        let shown = newest.as_ref().map_or_else(
            || "none yet".to_owned(),
            |point| format!("{} of {}, {}", point.id, tables::local(&point.at), point.state),
        );
        let _infallible = writeln!(text, "  {kind}: {shown}");
    }
    let _infallible = writeln!(
        text,
        "  cuts since the coordinator was started: {} made, {} void",
        group.marked_cuts, group.voided_cuts
    );
    text + &voided(&group.last_voided)
}

fn listed(list: &GroupPointsShape) -> String {
    let mut text = String::new();
    if list.points.is_empty() {
        let _infallible = writeln!(text, "Group {} has no group point.", list.name);
    }
    for point in &list.points {
        let held = point.members.iter().map(|member| format!("{} {}", member.name, micros(member.hold_us)));
        let _infallible = writeln!(
            text,
            "{}  {}  {}-consistent, {}; within {}; held: {}",
            point.id,
            tables::local(&point.at),
            point.consistency,
            point.state,
            micros(point.spread_us),
            held.collect::<Vec<_>>().join(", ")
        );
    }
    if list.incomplete > 0 {
        let _infallible = writeln!(text, "{} group cuts are there in part only.", list.incomplete);
    }
    text + &voided(&list.voided)
}

fn voided(cuts: &[VoidedGroupCutShape]) -> String {
    let mut text = String::new();
    for cut in cuts {
        let machine = cut.machine.as_ref().map(|machine| format!("{machine}: ")).unwrap_or_default();
        let _infallible = writeln!(text, "  void, {}: {machine}{}", tables::local(&cut.at), cut.reason);
    }
    text
}

impl Rules {
    fn request(self) -> GroupRequest {
        GroupRequest {
            interval_ms: self.interval.map(millis),
            wait_ms_max: self.wait.map(millis),
            application_interval_ms: self.app_consistent_interval.map(millis),
            lag: self.lag.map(|Set(lag)| lag.unwrap_or(Ages { warning_ms: 0, critical_ms: 0 })),
            ..GroupRequest::default()
        }
    }
}

fn path(group: &str) -> String {
    format!("/v1/groups/{}", escape(group))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn micros(time_us: u64) -> String {
    duration::show(Duration::from_micros(time_us))
}
