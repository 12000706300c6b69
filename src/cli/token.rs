//! `mainstay token`: personal tokens, by which the daemon knows who asks over TCP.

use super::client::Client;
use super::exit::{Exit, Failure};
use super::table::{self, Cell};
use super::ui::Tone;
use super::{Context, words};
use crate::model::api::{TokenCreated, TokenRequest, TokenState, TokenView};
use crate::model::{PersonName, Span};
use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// Make and revoke personal tokens, which say who asks over TCP
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
#[command(after_help = "Examples:
  (umask 077; mainstay token create ana --name laptop --expires 90d > ana.token)
  MAINSTAY_URL=https://ci.example.com MAINSTAY_TOKEN_FILE=ana.token mainstay runs
  mainstay token list
  mainstay token revoke 3

`people.users` in mainstay.yml names the people. Tokens are made and revoked on the daemon's machine
only, by its own user or root: over TCP that is refused, whatever token is shown.")]
pub struct Args {
    #[command(subcommand)]
    act: Act,
}

#[derive(Debug, clap::Subcommand)]
enum Act {
    /// Make a token; its text is printed once, and only its digest is stored
    Create {
        /// Whose it is: a name under `people.users` in mainstay.yml
        person: PersonName,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
        /// It is taken for so long, such as 90d or 12h [default: until it is revoked]
        #[arg(long, value_name = "SPAN")]
        expires: Option<Span>,
    },
    /// List the tokens, without their texts
    List,
    /// End a token, at once and for good
    Revoke {
        /// Its number in the list
        id: u64,
    },
}

/// Runs the command.
///
/// # Errors
/// When the daemon does not answer or refuses.
pub async fn run(args: &Args, context: &Context) -> Result<Exit, Failure> {
    let client = Client::new(&context.place)?;
    match &args.act {
        Act::Create { person, name, expires } => create(&client, context, person, name.clone(), *expires).await?,
        Act::List => {
            let found: Vec<TokenView> = client.get("tokens", &[]).await?;
            list(context, &found);
        }
        Act::Revoke { id } => {
            let token: TokenView = client.post(&format!("tokens/{id}/revoke"), &serde_json::json!({})).await?;
            if context.ui.json {
                context.ui.json(&token);
            } else {
                context.ui.out(format!("revoked token {} of {}", token.id, token.person));
            }
        }
    }
    Ok(Exit::Good)
}

async fn create(
    client: &Client,
    context: &Context,
    person: &PersonName,
    name: Option<String>,
    expires: Option<Span>,
) -> Result<(), Failure> {
    let wrong = |why: &str| Failure::wrong(format!("make a token: {why}")).hint("write a time such as `--expires 90d`");
    let expires_at = match expires {
        Some(span) if span.0 < Duration::from_secs(1) => return Err(wrong("it would be over at once")),
        Some(span) => {
            let span = SignedDuration::try_from(span.0).ok();
            let end = span.and_then(|span| Timestamp::now().checked_add(span).ok());
            Some(end.ok_or_else(|| wrong("its end is too far away"))?)
        }
        None => None,
    };
    let request = TokenRequest { person: person.clone(), name, expires_at };
    let made: TokenCreated = client.post("tokens", &request).await?;
    let ui = &context.ui;
    if ui.json {
        ui.json(&made);
        return Ok(());
    }
    ui.out(&made.token);
    let until = match made.stored.expires_at {
        Some(end) => format!("it is taken until {}", end.strftime("%Y-%m-%d %H:%M:%SZ")),
        None => "it is taken until it is revoked".to_owned(),
    };
    ui.say(format!("token {} of {}; {until}, and is not shown again", made.stored.id, made.stored.person));
    Ok(())
}

fn list(context: &Context, found: &[TokenView]) {
    let ui = &context.ui;
    if ui.json {
        return ui.json(&found);
    }
    if found.is_empty() {
        return ui.say("there are no personal tokens; `mainstay token create PERSON` makes one");
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<Cell>> = found.iter().map(|token| row(token, now)).collect();
    for line in table::lines(ui, &["ID", "STATE", "PERSON", "MADE", "BY", "EXPIRES", "NAME"], &rows, ui.columns()) {
        ui.out(line);
    }
}

fn row(token: &TokenView, now: Timestamp) -> Vec<Cell> {
    let tone = if token.state == TokenState::InForce { Tone::Good } else { Tone::Dim };
    vec![
        Cell::toned(Tone::Strong, token.id.to_string()),
        Cell::toned(tone, token.state.as_str()),
        token.person.as_str().into(),
        words::ago(token.created_at, now).into(),
        words::clean(&token.created_by).into(),
        token.expires_at.map(|end| end.strftime("%Y-%m-%d %H:%MZ").to_string()).unwrap_or_default().into(),
        words::clean(token.name.as_deref().unwrap_or_default()).into(),
    ]
}
