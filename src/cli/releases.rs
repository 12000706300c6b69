//! `mainstay releases`: what was put into an environment.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, words};
use crate::model::EnvironmentName;
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
        let verified = match row.verified_at {
            Some(at) => Cell::toned(Tone::Good, format!("✓ {}", words::ago(at, now))),
            None => Cell::toned(Tone::Dim, "no"),
        };
        let images: Vec<_> = row.release.images.iter().map(|(service, image)| format!("{service}={image}")).collect();
        vec![
            Cell::toned(Tone::Strong, row.release.number.to_string()),
            words::ago(row.release.at, now).into(),
            verified,
            format!("{} {}", from.repo, &from.commit.as_str()[..7]).into(),
            format!("#{}", from.run).into(),
            words::clean(&images.join(" ")).into(),
        ]
    };
    let rows: Vec<Vec<Cell>> = found.iter().map(row).collect();
    for line in table::lines(ui, &["RELEASE", "WHEN", "VERIFIED", "WHAT", "RUN", "IMAGES"], &rows, ui.columns()) {
        ui.out(line);
    }
    Ok(Exit::Good)
}
