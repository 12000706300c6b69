//! What the commands about deploys share: following one to its end, and its words.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::ui::{Tone, Ui};
use super::{Context, words};
use crate::model::DeployId;
use crate::model::deploy::DeployStatus;
use crate::model::deploy_view::{DeployStarted, DeployView};
use jiff::Timestamp;
use std::time::Duration;

/// How often a deploy under way is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// The sign and the tone of a status.
pub(super) fn sign(status: DeployStatus) -> (&'static str, Tone) {
    match status {
        DeployStatus::Verified => ("✓", Tone::Good),
        DeployStatus::Unverified | DeployStatus::Superseded | DeployStatus::Cancelled => ("-", Tone::Dim),
        DeployStatus::Failed | DeployStatus::RollbackFailed | DeployStatus::Refused => ("✗", Tone::Bad),
        DeployStatus::RolledBack | DeployStatus::RollingBack => ("↶", Tone::Bad),
        DeployStatus::Queued | DeployStatus::Waiting => ("◦", Tone::Dim),
        DeployStatus::Applying | DeployStatus::Checking | DeployStatus::Watching => ("▸", Tone::Strong),
    }
}

/// Where a deploy stands, in a line.
pub(super) fn line(ui: &Ui, deploy: &DeployView) -> String {
    let (sign, tone) = sign(deploy.status);
    let release = deploy.release.map(|number| format!(", release {number}")).unwrap_or_default();
    let why = deploy.why.as_deref().and_then(|why| why.lines().next()).map(words::clean);
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    format!(
        "{} deploy #{} of {} to {}{release}{why}",
        ui.paint(tone, format!("{sign} {}", deploy.status)),
        deploy.id,
        words::clean(&deploy.what),
        deploy.environment
    )
}

/// Says what was asked for, and waits for its end unless that is not wanted.
pub(super) async fn follow(
    client: &Client,
    context: &Context,
    started: &DeployStarted,
    detach: bool,
) -> Result<Exit, Failure> {
    let ui = &context.ui;
    if detach {
        if ui.json {
            ui.json(started);
        } else {
            ui.out(format!("deploy #{}", started.deploy));
        }
        return Ok(Exit::Good);
    }
    let deploy = tokio::select! {
        deploy = to_the_end(client, ui, started.deploy) => deploy?,
        _ = tokio::signal::ctrl_c() => {
            ui.say(format!("deploy #{} goes on without you", started.deploy));
            return Ok(Exit::Interrupted);
        }
    };
    if ui.json {
        ui.json(&deploy);
    } else {
        for hint in deploy.why.iter().flat_map(|why| why.lines().skip(1)) {
            ui.say(words::clean(hint));
        }
    }
    Ok(match deploy.status {
        DeployStatus::Verified | DeployStatus::Unverified => Exit::Good,
        DeployStatus::Refused | DeployStatus::Superseded => Exit::Refused,
        // Asked for or not: what was put back is what serves, and that is what a rollback wants.
        DeployStatus::RolledBack if deploy.by_request => Exit::Good,
        _ => Exit::Bad,
    })
}

async fn to_the_end(client: &Client, ui: &Ui, id: DeployId) -> Result<DeployView, Failure> {
    let mut said = None;
    loop {
        let deploy: DeployView = client.get(&format!("deploys/{id}"), &[]).await?;
        if said != Some(deploy.status) {
            said = Some(deploy.status);
            if !ui.json {
                ui.out(line(ui, &deploy));
                if deploy.status == DeployStatus::Waiting
                    && let Some(approval) = deploy.approval
                {
                    ui.say(format!("people are asked: mainstay approve {approval}"));
                }
            }
        }
        if deploy.status.is_final() {
            if !ui.json {
                times(ui, &deploy);
            }
            return Ok(deploy);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn times(ui: &Ui, deploy: &DeployView) {
    let span = |from: Option<Timestamp>, to: Option<Timestamp>| Some(words::took(words::between(from?, to?)));
    if let Some(took) = span(deploy.bad_at, deploy.put_back_at) {
        ui.say(format!("release {} served again {took} after it was found bad", deploy.fallback.unwrap_or_default()));
    } else if let Some(took) = span(Some(deploy.created_at), deploy.applied_at) {
        ui.say(format!("it served {took} after it was asked for"));
    }
}
