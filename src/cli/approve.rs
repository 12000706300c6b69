//! `mainstay approve`, `reject` and `withdraw`: a person's answer.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Context, approvals, words};
use crate::model::ApprovalId;
use crate::model::api::DecisionRequest;
use crate::model::approval::{ApprovalState, ApprovalView};
use std::collections::BTreeMap;

/// Say yes to what waits for approval
///
/// It counts for exactly what `mainstay approvals ID` shows, and can be taken back until it begins. Over the socket you are
/// whoever has your user name under `unix` in mainstay.yml; over TCP you need a personal token.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay approve 3
  mainstay approve 3 --input ticket=T-41 --message \"looks right\"

Exit code 4: your answer does not count there, and nothing was changed.")]
pub struct ApproveArgs {
    /// The request: 3 or #3
    id: ApprovalId,
    /// Something it asks for along with a yes; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = words::key_value)]
    input: Vec<(String, String)>,
    /// A word about it, which all approvers see
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

/// Say no to what waits for approval, which ends it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mainstay reject 3 --message \"not before Monday\"

Exit code 4: your answer does not count there, and nothing was changed.")]
pub struct RejectArgs {
    /// The request: 3 or #3
    id: ApprovalId,
    /// Why, which all approvers see
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
}

/// Take back what you said, as long as it has not begun
#[derive(Debug, clap::Args)]
pub struct WithdrawArgs {
    /// The request: 3 or #3
    id: ApprovalId,
}

/// Runs `approve`.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn approve(args: &ApproveArgs, context: &Context) -> Result<Exit, Failure> {
    let mut inputs = BTreeMap::new();
    for (key, value) in &args.input {
        if inputs.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::wrong(format!("take the input `{key}`: it is given twice")));
        }
    }
    let request = DecisionRequest { inputs, message: args.message.clone() };
    answer(context, args.id, "approve", "approved", &request).await
}

/// Runs `reject`.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn reject(args: &RejectArgs, context: &Context) -> Result<Exit, Failure> {
    let request = DecisionRequest { inputs: BTreeMap::new(), message: args.message.clone() };
    answer(context, args.id, "reject", "rejected", &request).await
}

/// Runs `withdraw`.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn withdraw(args: &WithdrawArgs, context: &Context) -> Result<Exit, Failure> {
    answer(context, args.id, "withdraw", "took back the answer to", &DecisionRequest::default()).await
}

async fn answer(
    context: &Context,
    id: ApprovalId,
    act: &str,
    done: &str,
    request: &DecisionRequest,
) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    let view: ApprovalView = client.post(&format!("approvals/{id}/{act}"), request).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&view);
        return Ok(Exit::Good);
    }
    ui.out(said(done, &view));
    if act == "approve" && !view.state.is_final() {
        ui.say(format!("until it begins, `mainstay withdraw {id}` takes that back"));
    }
    Ok(Exit::Good)
}

/// What was done, and what came of it; that a no ends it goes without saying.
fn said(done: &str, view: &ApprovalView) -> String {
    let what = format!("{done} {}, {}", view.id, words::clean(&view.subject.title));
    match view.state {
        ApprovalState::Rejected if done == "rejected" => what,
        _ => format!("{what}: {}", approvals::outcome(view)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::approvals::tests::sample;

    #[test]
    fn what_came_of_an_answer_is_said_once() {
        let mut view = sample();
        let title = "3, deploy shop 1a2b3c4d to production";
        assert_eq!(said("approved", &view), format!("approved {title}: 1 of 2 said yes; it waits for dee"));
        (view.state, view.note) = (ApprovalState::Rejected, Some("rejected by ana".into()));
        assert_eq!(said("rejected", &view), format!("rejected {title}"));
        // Somebody else was quicker.
        assert_eq!(said("approved", &view), format!("approved {title}: it is rejected by ana"));
        (view.state, view.note) = (ApprovalState::Void, Some("what it was asked for has changed".into()));
        assert_eq!(said("approved", &view), format!("approved {title}: it is void, what it was asked for has changed"));
    }
}
