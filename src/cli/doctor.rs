//! `mainstay doctor`: looks at everything a daemon needs on this machine, and says how to mend what is missing.

mod engine;
mod machine;
mod sources;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::config::backup::{self, Backups};
use crate::config::daemon::notify::{Notify, Smtp};
use crate::config::daemon::{self, Daemon, RuntimeChoice};
use crate::model::InstanceId;
use crate::model::api::DaemonStatus;
use crate::model::deploy_view::EnvironmentView;
use crate::notify::email::Email;
use serde::Serialize;

/// See whether this machine has what a daemon needs
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 all needed is there, 3 something is missing. Each finding says how to mend it.

Example:
  mainstay --json doctor | jq '.[] | select(.state == \"missing\")'")]
pub struct Args {
    /// Do not try to run a container
    #[arg(long)]
    no_run: bool,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Good.
    Good,
    /// It works, but something will be in the way.
    Poor,
    /// A daemon cannot work without it.
    Missing,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Check {
    /// What.
    name: &'static str,
    state: State,
    /// What was found.
    found: String,
    /// How to mend it, a sentence each.
    mend: Vec<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Check { name, state: State::Good, found: found.into(), mend: Vec::new() }
    }
    fn poor(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Check { name, state: State::Poor, found: found.into(), mend: vec![mend.into()] }
    }
    fn missing(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Check { name, state: State::Missing, found: found.into(), mend: vec![mend.into()] }
    }
}

/// Runs the command.
///
/// # Errors
/// None: what is wrong is a finding.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let mut checks = Vec::new();
    let (runtime, notify, backups) = configuration(context, &mut checks);
    machine::look(&context.place, &mut checks);
    checks.push(running(context).await);
    checks.extend(environments(context).await);
    match runtime {
        RuntimeChoice::Docker(settings) => engine::look(&settings, !args.no_run, &mut checks).await,
        RuntimeChoice::Process => {
            checks.push(Check::good("container engine", "not needed: `runtime: process`"));
        }
    }
    if let Some((config, backups)) = &backups {
        sources::look(config, backups, &mut checks).await;
    }
    if let Some(smtp) = &notify.smtp {
        checks.push(mail(smtp).await);
    }
    report(&context.ui, &checks);
    let missing = checks.iter().any(|check| check.state == State::Missing);
    Ok(if missing { Exit::Unreachable } else { Exit::Good })
}

/// The configuration as a daemon would read it; without a usable one, the usual settings are looked at.
fn configuration(context: &Context, checks: &mut Vec<Check>) -> (RuntimeChoice, Notify, Option<(Daemon, Backups)>) {
    const NAME: &str = "configuration";
    let usual = (RuntimeChoice::Docker(daemon::DockerSettings::default()), Notify::default(), None);
    let Some(file) = &context.place.config else {
        checks.push(Check::poor(NAME, "none found", "write one with `mainstay init`, or name it with --config"));
        return usual;
    };
    match daemon::load(file) {
        Ok(settings) => {
            let found = format!("{}, {}", file.display(), words::repositories(settings.repos.len()));
            checks.push(Check::good(NAME, found));
            let backups = match backup::load(file) {
                Ok(backups) => Some(backups),
                Err(bad) => {
                    let found = first_of(&bad);
                    checks.push(Check::missing(
                        "sources",
                        found,
                        "`mainstay validate` shows what is wrong in `backups/`",
                    ));
                    None
                }
            };
            (settings.runtime.clone(), settings.notify.clone(), backups.map(|backups| (settings, backups)))
        }
        Err(findings) => {
            let count = findings.list.len();
            let found = format!("{}: {count} finding{}", file.display(), if count == 1 { "" } else { "s" });
            checks.push(Check::missing(NAME, found, format!("`mainstay validate {}` shows them", file.display())));
            usual
        }
    }
}

/// The first thing that is wrong with the sources, and the file that it is in.
fn first_of(bad: &backup::BadBackups) -> String {
    let file = bad.files.first();
    let first = file.and_then(|file| Some((file, file.list.first()?)));
    first.map_or_else(String::new, |(file, finding)| format!("{}: {}", file.file, finding.message))
}

/// Whether the mail server takes us. A daemon works without: people are asked on the command line, and mail waits.
async fn mail(smtp: &Smtp) -> Check {
    const NAME: &str = "mail server";
    const MEND: &str = "see `notify.smtp` in mainstay.yml; messages wait for three days";
    // Nothing is sent, so whose messages they would be does not matter.
    match Email::new(smtp, &InstanceId(String::new())) {
        Ok(email) => match email.check().await {
            Ok(found) => Check::good(NAME, found),
            Err(why) => Check::poor(NAME, why.to_string(), MEND),
        },
        Err(error) => Check::poor(NAME, error.to_string().lines().next().unwrap_or_default(), MEND),
    }
}

/// Whether a daemon answers. None is no fault: one looks before the first start.
async fn running(context: &Context) -> Check {
    const NAME: &str = "daemon";
    let asked = match Client::new(&context.place) {
        Ok(client) => client.get::<DaemonStatus>("status", &[]).await,
        Err(failure) => Err(failure),
    };
    match asked {
        Ok(status) if status.version != env!("CARGO_PKG_VERSION") => Check::poor(
            NAME,
            format!("version {} runs, this is {}", words::clean(&status.version), env!("CARGO_PKG_VERSION")),
            "restart the daemon; runs go on",
        ),
        Ok(status) if !status.not_ready.is_empty() => {
            Check::poor(NAME, words::clean(&status.not_ready.join("; ")), "see the daemon's log")
        }
        Ok(status) => Check::good(NAME, format!("version {} runs", words::clean(&status.version))),
        Err(failure) if failure.exit == Exit::Unreachable => {
            Check::good(NAME, "not running; `mainstay serve` starts it")
        }
        Err(failure) => Check::poor(NAME, failure.error.to_string(), failure.hints.join("; ")),
    }
}

/// Environments that wait for a person, such as one whose deploy history no trusted key vouches for.
async fn environments(context: &Context) -> Vec<Check> {
    let Ok(client) = Client::new(&context.place) else { return Vec::new() };
    let found: Vec<EnvironmentView> = client.get("environments", &[]).await.unwrap_or_default();
    found.iter().filter_map(waiting_for_a_person).collect()
}

fn waiting_for_a_person(one: &EnvironmentView) -> Option<Check> {
    let mut lines = one.attention.as_deref()?.lines().map(words::clean);
    let found = format!("{}: {}", one.name, lines.next().unwrap_or_default());
    let mut mend: Vec<_> = lines.map(|line| line.trim_start_matches("hint: ").to_owned()).collect();
    if mend.is_empty() {
        mend.push(format!("see `mainstay environments {0}`, then `mainstay release-hold {0}`", one.name));
    }
    Some(Check { name: "environment", state: State::Poor, found, mend })
}

fn report(ui: &Ui, checks: &[Check]) {
    if ui.json {
        return ui.json(&checks);
    }
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    for check in checks {
        let (sign, tone) = match check.state {
            State::Good => ("✓", Tone::Good),
            State::Poor => ("~", Tone::Active),
            State::Missing => ("✗", Tone::Bad),
        };
        ui.out(format!("{} {:width$}  {}", ui.paint(tone, sign), check.name, words::clean(&check.found)));
        for mend in &check.mend {
            ui.out(format!("  {:width$}  {} {mend}", "", ui.paint(Tone::Strong, "mend:")));
        }
    }
    let bad = checks.iter().filter(|check| check.state == State::Missing).count();
    ui.say(match bad {
        0 => "all that a daemon needs is there".to_owned(),
        1 => "one thing is missing".to_owned(),
        n => format!("{n} things are missing"),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_sources_comes_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("backups")).unwrap();
        std::fs::write(dir.path().join("mainstay.yml"), "repos: { shop: /x }").unwrap();
        let pipe = dir.path().join("backups/pipe.yml");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let bad = backup::load(&dir.path().join("mainstay.yml")).unwrap_err();
        let told = first_of(&bad);
        assert!(told.starts_with(&*pipe.to_string_lossy()) && told.ends_with("no regular file"), "{told}");
    }
}
