//! From text to a plan, with every mistake and its line.
//!
//! Owns the keys of the format. Pure. Invariant: a text with mistakes still gives as much of the plan as can be understood, so that one look
//! names them all; a plan without mistakes says all that the text said, since what is not known is a mistake.
//! Limits: [`PLAN_BYTES_MAX`] of text, [`MISTAKES_MAX`] mistakes told.

use std::{collections::BTreeMap, fmt, marker::PhantomData, ops::Range, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Action, OnError, Place, What,
    course::Direction,
    file::{FileAction, FileGroup, FileTarget, PlanFile},
};
use crate::{duration::parse_duration, points::selection::Selection};

/// A mistake in a plan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mistake {
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// Reads a plan. The mistakes are in the order of their lines.
#[must_use]
pub fn read(text: &str) -> (PlanFile, Vec<Mistake>) {
    let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
    let mut reader = Reader { line_ends, mistakes: Vec::new(), text: PhantomData };
    if text.len() > PLAN_BYTES_MAX {
        reader.say(&(0..0), format!("the plan has {} bytes, more than {PLAN_BYTES_MAX}", text.len()));
        return (empty(), reader.mistakes);
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        reader.say(&error.span().unwrap_or(0..0), error.message().to_owned());
    }
    let plan = reader.plan(document.get_ref());
    reader.mistakes.sort();
    reader.mistakes.dedup();
    reader.mistakes.truncate(MISTAKES_MAX);
    (plan, reader.mistakes)
}

fn empty() -> PlanFile {
    PlanFile {
        name: String::new(),
        description: String::new(),
        selection: Selection::Latest,
        target: FileTarget::Attach,
        networks: BTreeMap::new(),
        test_networks: BTreeMap::new(),
        network_lines: Vec::new(),
        groups: Vec::new(),
    }
}

struct Reader<'t> {
    /// Where each line ends.
    line_ends: Vec<usize>,
    text: PhantomData<&'t str>,
    mistakes: Vec<Mistake>,
}

type Value<'t> = Spanned<DeValue<'t>>;

impl<'t> Reader<'t> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.line_ends.partition_point(|end| *end < span.start) + 1
    }

    fn say(&mut self, span: &Range<usize>, text: impl Into<String>) {
        let (line, text) = (self.line(span), text.into());
        self.mistakes.push(Mistake { line, text });
    }

    fn plan(&mut self, table: &DeTable<'t>) -> PlanFile {
        let keys = ["name", "description", "point", "target", "networks", "test_networks", "group"];
        self.known(table, "a plan", &keys);
        let mut plan = empty();
        match table.get("name") {
            None => self.say(&(0..0), "the plan has no name; begin with: name = \"...\""),
            Some(value) => {
                plan.name = self.string(value, "name").unwrap_or_default();
                if !is_name(&plan.name) {
                    let text = format!(
                        "a plan's name has 1 to {NAME_BYTES_MAX} letters, digits and . _ - and begins with none of these"
                    );
                    self.say(&value.span(), text);
                }
            }
        }
        plan.description =
            table.get("description").and_then(|value| self.string(value, "description")).unwrap_or_default();
        if let Some(value) = table.get("point")
            && let Some(point) = self.string(value, "point")
        {
            match point.parse() {
                Ok(selection) => plan.selection = selection,
                Err(error) => self.say(&value.span(), format!("{error}")),
            }
        }
        if let Some(value) = table.get("target") {
            plan.target = self.target(value);
        }
        plan.networks = self.networks(table.get("networks"), "networks", &mut plan.network_lines);
        plan.test_networks =
            self.networks(table.get("test_networks"), "test_networks", &mut plan.network_lines);
        match table.get("group") {
            None => self.say(&(0..0), "the plan has no group; each begins with [[group]]"),
            Some(value) => plan.groups = self.groups(value),
        }
        plan
    }

    fn target(&mut self, value: &Value<'t>) -> FileTarget {
        let help = "a target is \"attach\", \"writable\", \"vm\", \"vm-stream\", or { image = \"/FOLDER\", format = \"raw\" }";
        match value.get_ref() {
            DeValue::String(text) => match &**text {
                "attach" => return FileTarget::Attach,
                "writable" => return FileTarget::Writable,
                "vm" => return FileTarget::Machine { stream: false },
                "vm-stream" => return FileTarget::Machine { stream: true },
                _ => {}
            },
            DeValue::Table(table) => {
                self.known(table, "a target", &["image", "format"]);
                let folder = table.get("image").and_then(|folder| self.string(folder, "image"));
                let folder = PathBuf::from(folder.unwrap_or_default());
                let format = table.get("format").map(|format| (format.span(), self.string(format, "format")));
                let (span, format) = format.unwrap_or((value.span(), Some("raw".to_owned())));
                let format = format.unwrap_or_default();
                if !folder.is_absolute() {
                    self.say(
                        &value.span(),
                        "a target's image is a folder on the coordinator's host, with its full path",
                    );
                }
                if !["raw", "qcow2"].contains(&&*format) {
                    self.say(&span, format!("`{format}` is no image format; use raw or qcow2"));
                }
                return FileTarget::Image { folder, format };
            }
            _ => {}
        }
        self.say(&value.span(), help);
        FileTarget::Attach
    }

    fn networks(
        &mut self,
        value: Option<&Value<'t>>,
        what: &str,
        lines: &mut Vec<(String, usize)>,
    ) -> BTreeMap<String, String> {
        let mut networks = BTreeMap::new();
        let Some(value) = value else { return networks };
        let Some(table) = value.get_ref().as_table() else {
            self.say(
                &value.span(),
                format!(
                    "{what} is a table of cards at the source and networks at the target: eth0 = \"br0\""
                ),
            );
            return networks;
        };
        for (card, value) in table.iter() {
            let Some(network) = self.string(value, "a network") else { continue };
            if !is_network(&network) {
                let text = format!(
                    "`{network}` is no network; a bridge's name (at most 15 characters), \"user\" or \"isolated\""
                );
                self.say(&value.span(), text);
            }
            lines.push((network.clone(), self.line(&value.span())));
            networks.insert(card.get_ref().to_string(), network);
        }
        networks
    }

    fn groups(&mut self, value: &Value<'t>) -> Vec<FileGroup> {
        let Some(tables) = value.get_ref().as_array() else {
            self.say(&value.span(), "groups are written with two brackets: [[group]]");
            return Vec::new();
        };
        let mut groups = Vec::new();
        let mut needs = Vec::new();
        for entry in tables.iter() {
            let Some(table) = entry.get_ref().as_table() else {
                self.say(&entry.span(), "a group is a table that begins with [[group]]");
                continue;
            };
            groups.push(self.group(table, &entry.span()));
            needs.push(table.get("needs"));
        }
        self.unique_names(&groups);
        for (number, value) in needs.into_iter().enumerate() {
            let found = self.needs(value, number, &groups);
            if let Some(group) = groups.get_mut(number) {
                group.needs = found;
            }
        }
        groups
    }

    fn group(&mut self, table: &DeTable<'t>, span: &Range<usize>) -> FileGroup {
        let keys = ["name", "needs", "machines", "time_limit", "on_error", "before", "after"];
        self.known(table, "a group", &keys);
        let name = match table.get("name") {
            Some(value) => self.string(value, "name").unwrap_or_default(),
            None => {
                self.say(span, "the group has no name");
                String::new()
            }
        };
        if table.contains_key("name") && !is_title(&name) {
            let text = format!("a group's name is one line of 1 to {NAME_BYTES_MAX} bytes");
            self.say(&table.get("name").map_or(span.clone(), Spanned::span), text);
        }
        let machines = match table.get("machines") {
            Some(value) => self.strings(value, "machines"),
            None => Vec::new(),
        };
        if machines.is_empty() {
            let at = table.get("machines").map_or(span.clone(), Spanned::span);
            self.say(&at, format!("group `{name}` has no machine; machines = [\"...\"] names them"));
        }
        let machines = machines.into_iter().map(|(name, span)| (name, self.line(&span))).collect();
        FileGroup {
            name,
            line: self.line(span),
            machines,
            needs: Vec::new(),
            time_limit_ms: self.time(table.get("time_limit"), GROUP_LIMIT),
            on_error: self.on_error(table.get("on_error")).unwrap_or_default(),
            before: self.actions(table.get("before"), "before"),
            after: self.actions(table.get("after"), "after"),
        }
    }

    fn unique_names(&mut self, groups: &[FileGroup]) {
        for (number, group) in groups.iter().enumerate() {
            let first = groups.iter().take(number).find(|first| first.name == group.name);
            if let Some(first) = first.filter(|first| !first.name.is_empty()) {
                let text = format!("there is a group `{}` already, in line {}", group.name, first.line);
                self.mistakes.push(Mistake { line: group.line, text });
            }
        }
    }

    fn needs(&mut self, value: Option<&Value<'t>>, number: usize, groups: &[FileGroup]) -> Vec<usize> {
        // Whoever says nothing comes after the group before.
        let Some(value) = value else { return number.checked_sub(1).into_iter().collect() };
        let mut needs = Vec::new();
        for (name, span) in self.strings(value, "needs") {
            match groups.iter().position(|group| group.name == name) {
                None => self.say(&span, format!("there is no group `{name}` in this plan")),
                Some(needed) if needed == number => {
                    self.say(&span, format!("group `{name}` cannot need itself"));
                }
                Some(needed) => needs.push(needed),
            }
        }
        needs
    }

    fn actions(&mut self, value: Option<&Value<'t>>, when: &str) -> Vec<FileAction> {
        let Some(value) = value else { return Vec::new() };
        let Some(tables) = value.get_ref().as_array() else {
            self.say(&value.span(), format!("actions are written with two brackets: [[group.{when}]]"));
            return Vec::new();
        };
        let mut actions = Vec::new();
        for entry in tables.iter() {
            match entry.get_ref().as_table() {
                Some(table) => actions.extend(self.action(table, &entry.span())),
                None => {
                    self.say(&entry.span(), format!("an action is a table that begins with [[group.{when}]]"))
                }
            }
        }
        actions
    }

    fn action(&mut self, table: &DeTable<'t>, span: &Range<usize>) -> Option<FileAction> {
        self.known(
            table,
            "an action",
            &["name", "script", "manual", "on", "time_limit", "on_error", "direction"],
        );
        let name = table.get("name").and_then(|value| self.string(value, "name"));
        let what = match (table.get("script"), table.get("manual")) {
            (Some(script), None) => {
                let on = self.place(table.get("on"));
                let command = self.command(script, &on);
                let time_limit_ms = self.time(table.get("time_limit"), SCRIPT_LIMIT);
                What::Script { on, command, time_limit_ms }
            }
            (None, Some(manual)) => {
                for key in ["on", "time_limit", "on_error"] {
                    if let Some(value) = table.get(key) {
                        self.say(
                            &value.span(),
                            format!("a manual action has no `{key}`: it waits until `holdfast job continue`"),
                        );
                    }
                }
                let text = self.string(manual, "manual").unwrap_or_default();
                if text.trim().is_empty() || text.len() > MANUAL_BYTES_MAX {
                    self.say(
                        &manual.span(),
                        format!("a manual action says in 1 to {MANUAL_BYTES_MAX} bytes what is to be done"),
                    );
                }
                What::Manual { text }
            }
            _ => {
                self.say(
                    span,
                    "an action has either script = [\"/PROGRAM\", \"ARGUMENT\"] or manual = \"what to do\"",
                );
                return None;
            }
        };
        let name = name.unwrap_or_else(|| match &what {
            What::Script { command, .. } => command.first().cloned().unwrap_or_default(),
            What::Manual { text } => text.lines().next().unwrap_or_default().chars().take(60).collect(),
        });
        let on_error = self.on_error(table.get("on_error"));
        let direction = self.direction(table.get("direction"));
        Some(FileAction { action: Action { name, on_error, what }, direction, line: self.line(span) })
    }

    /// The only direction of an action.
    fn direction(&mut self, value: Option<&Value<'t>>) -> Option<Direction> {
        let value = value?;
        let text = self.string(value, "direction")?;
        let found = [Direction::ToTarget, Direction::ToSource].into_iter().find(|one| one.name() == text);
        if found.is_none() {
            let text = format!("`{text}` is no direction; it is \"to-target\" or \"to-source\"");
            self.say(&value.span(), text);
        }
        found
    }

    /// Where a script runs.
    fn place(&mut self, value: Option<&Value<'t>>) -> Place {
        let Some(value) = value else { return Place::Coordinator };
        let text = match self.string(value, "on").as_deref() {
            None | Some("coordinator") => return Place::Coordinator,
            Some("source") => return Place::Source,
            Some("target") => {
                "no agent is let in from a machine that runs at its target: it is fenced there like its source; name a host with an agent \
                 (on = \"agent NAME\"), or the coordinator's, which can reach the machine by its own means (ssh)"
                    .to_owned()
            }
            Some(other) => match other.strip_prefix("agent ").map(str::trim).filter(|name| is_title(name)) {
                Some(name) => return Place::Agent(name.to_owned()),
                None => format!(
                    "a script cannot run on `{other}`; on = \"coordinator\", \"source\" or \"agent NAME\""
                ),
            },
        };
        self.say(&value.span(), text);
        Place::Coordinator
    }

    fn command(&mut self, value: &Value<'t>, on: &Place) -> Vec<String> {
        let words: Vec<String> = match value.get_ref() {
            DeValue::String(program) => vec![program.to_string()],
            _ => self.strings(value, "script").into_iter().map(|(word, _)| word).collect(),
        };
        match (words.first(), on) {
            (Some(program), Place::Coordinator) if program.starts_with('/') => {}
            (Some(program), Place::Coordinator) => {
                let text = format!("`{program}` is no full path; a script is called by its full path");
                self.say(&value.span(), text);
            }
            (Some(program), Place::Source | Place::Agent(_)) if is_name(program) => {}
            (Some(program), Place::Source | Place::Agent(_)) => {
                let text = format!(
                    "`{program}` is no name of a program; an agent runs a script by its name in its folder of \
                     actions (/etc/holdfast/actions.d)"
                );
                self.say(&value.span(), text);
            }
            (None, _) => {
                self.say(&value.span(), "a script names a program: script = [\"/PROGRAM\", \"ARGUMENT\"]");
            }
        }
        if words.iter().any(|word| word.contains('\0')) {
            self.say(&value.span(), "a script's words cannot hold the character 0");
        }
        words
    }

    fn on_error(&mut self, value: Option<&Value<'t>>) -> Option<OnError> {
        let value = value?;
        match self.string(value, "on_error")?.as_str() {
            "stop" => Some(OnError::Stop),
            "continue" => Some(OnError::Continue),
            other => {
                self.say(&value.span(), format!("on_error is \"stop\" or \"continue\", not `{other}`"));
                None
            }
        }
    }

    fn time(&mut self, value: Option<&Value<'t>>, default: Duration) -> u64 {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let Some(value) = value else { return millis(default) };
        let Some(text) = self.string(value, "time_limit") else { return millis(default) };
        match parse_duration(&text) {
            Ok(time) if time.is_zero() || time > LIMIT_MAX => {
                self.say(&value.span(), "a time limit is more than nothing and at most 7 days");
            }
            Ok(time) => return millis(time),
            Err(error) => self.say(&value.span(), error),
        }
        millis(default)
    }

    fn string(&mut self, value: &Value<'t>, what: &str) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            other => {
                self.say(&value.span(), format!("{what} is a text in quotes, not {}", other.type_str()));
                None
            }
        }
    }

    fn strings(&mut self, value: &Value<'t>, what: &str) -> Vec<(String, Range<usize>)> {
        let Some(values) = value.get_ref().as_array() else {
            self.say(&value.span(), format!("{what} is a list of texts: [\"...\", \"...\"]"));
            return Vec::new();
        };
        let mut texts = Vec::new();
        for value in values.iter() {
            texts.extend(self.string(value, what).map(|text| (text, value.span())));
        }
        texts
    }

    fn known(&mut self, table: &DeTable<'t>, what: &str, keys: &[&str]) {
        for key in table.keys() {
            if !keys.contains(&&**key.get_ref()) {
                let text = format!("{what} has no `{}`; it may have: {}", key.get_ref(), keys.join(", "));
                self.say(&key.span(), text);
            }
        }
    }
}

/// Whether a text can name a plan, which is also a file's name.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    text.len() <= NAME_BYTES_MAX
        && text.chars().all(plain)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

fn is_title(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Names of network devices in Linux have 15 characters.
fn is_network(text: &str) -> bool {
    (1..=15).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ',')
}

/// Bytes of a plan's text.
pub const PLAN_BYTES_MAX: usize = 192 << 10;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of what a manual action says.
pub const MANUAL_BYTES_MAX: usize = 2000;
/// Mistakes told.
pub const MISTAKES_MAX: usize = 200;
/// How long the machines of a group may take if nothing is said.
const GROUP_LIMIT: Duration = Duration::from_mins(30);
/// And a script.
const SCRIPT_LIMIT: Duration = Duration::from_mins(10);
/// Longest limit.
const LIMIT_MAX: Duration = Duration::from_hours(7 * 24);

#[cfg(test)]
mod tests;
