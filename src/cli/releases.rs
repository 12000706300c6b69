//! `mainstay releases`: what was put into an environment.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, deploys, words};
use crate::model::EnvironmentName;
use crate::model::deploy::DeployStatus;
use crate::model::deploy_view::ReleaseView;
use jiff::Timestamp;

/// List the releases of an environment, the newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay releases production
  mainstay --json releases production | jq '.[0].release.rendered'   the configuration as it was handed over")]
pub struct Args {
    /// The environment
    environment: EnvironmentName,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or knows no such environment.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let path = format!("environments/{}/releases", args.environment);
    let found: Vec<ReleaseView> = client.get(&path, &[("limit", args.limit.to_string())]).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&found);
        return Ok(Exit::Good);
    }
    if found.is_empty() {
        ui.say(format!("nothing was deployed to {} yet", args.environment));
        return Ok(Exit::Good);
    }
    let now = Timestamp::now();
    let row = |row: &ReleaseView| -> Vec<Cell> {
        let from = &row.release.provenance;
        let images: Vec<_> = row.release.images.iter().map(|(service, image)| format!("{service}={image}")).collect();
        vec![
            Cell::toned(Tone::Strong, row.release.number.to_string()),
            words::ago(row.release.at, now).into(),
            state(row, now),
            format!("{} {}", from.repo, &from.commit.as_str()[..7]).into(),
            format!("#{}", from.run).into(),
            words::clean(&images.join(" ")).into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = found.iter().map(row).collect();
    for line in table::lines(ui, &["RELEASE", "WHEN", "STATE", "WHAT", "RUN", "IMAGES"], &rows, ui.columns()) {
        ui.out(line);
    }
    Ok(Exit::Good)
}

/// What became of it.
fn state(row: &ReleaseView, now: Timestamp) -> Cell {
    if let Some(at) = row.verified_at {
        return Cell::toned(Tone::Good, format!("✓ verified {}", words::ago(at, now)));
    }
    let (sign, tone) = deploys::sign(row.status);
    let word = match row.status {
        DeployStatus::Watching => "watched",
        DeployStatus::RolledBack => "rolled back",
        DeployStatus::RollingBack => "rolling back",
        DeployStatus::RollbackFailed => "rollback failed",
        other => other.as_str(),
    };
    Cell::toned(tone, format!("{sign} {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::ui::Ui;

    #[test]
    fn what_became_of_a_release_is_said_in_words() {
        let now: Timestamp = "2026-03-01T10:10:00Z".parse().unwrap();
        let said = |status: DeployStatus, verified_at: Option<&str>| {
            let row: ReleaseView = serde_json::from_value(serde_json::json!({
                "release": {
                    "environment": "production", "number": 7, "at": "2026-03-01T10:00:00Z",
                    "provenance": { "repo": "shop", "git_ref": "refs/heads/main", "commit": "1a2b3c4d".repeat(5),
                                    "pipeline": "release", "run": 3, "actor": null },
                    "images": {}, "target": "swarm", "rendered": "", "config_hash": "", "replicas": {}, "secrets": {},
                    "schema": null, "recovery_point": "none", "promoted_from": null
                },
                "deploy": 4, "status": status, "verified_at": verified_at, "recorded": null
            }))
            .unwrap();
            let ui = Ui::new(false, "never", 0);
            table::lines(&ui, &["S"], &[vec![state(&row, now)]], Some(80)).pop().unwrap().trim().to_owned()
        };
        assert_eq!(said(DeployStatus::Verified, Some("2026-03-01T10:08:00Z")), "✓ verified 2m ago");
        assert_eq!(said(DeployStatus::Unverified, Some("2026-03-01T10:08:00Z")), "✓ verified 2m ago", "by a repair");
        assert_eq!(said(DeployStatus::Unverified, None), "- unverified");
        assert_eq!(said(DeployStatus::RolledBack, None), "↶ rolled back");
        assert_eq!(said(DeployStatus::Watching, None), "▸ watched");
        assert_eq!(said(DeployStatus::Failed, None), "✗ failed");
        assert_eq!(said(DeployStatus::RollbackFailed, None), "✗ rollback failed");
    }
}
