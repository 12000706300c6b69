//! `mainstay restore --all`: every source, each to where its own file says, to one state.
//!
//! In: the options, and the sources that are known here or have something in the repository. Every one of them is planned and
//! looked at before the first is touched; from then on one that fails does not keep the others from coming back.

use super::{Args, Done, Step, one};
use crate::cli::Context;
use crate::cli::desk::Desk;
use crate::cli::exit::{Exit, Failure};
use crate::cli::ui::Tone;
use crate::model::SourceName;
use serde_json::{Value, json};
use std::collections::BTreeMap;

pub(super) async fn run(args: &Args, context: &Context, desk: &Desk) -> Result<Exit, Failure> {
    let names = desk.names().await?;
    if names.is_empty() {
        return Err(Failure::wrong(format!("find sources: {} holds none", desk.repository.place())));
    }
    let planned = plans(args, context, desk, &names).await?;
    let ui = &context.ui;
    if args.dry_run {
        if ui.json {
            ui.json(&planned.into_iter().map(|(source, done)| with(&source, done.document)).collect::<Vec<_>>());
        }
        return Ok(Exit::Good);
    }
    let (mut documents, mut bad) = (Vec::new(), Vec::new());
    for source in &names {
        match one(args, context, desk, source, Step::CarryOut).await {
            Ok(done) => {
                if done.exit != Exit::Good {
                    bad.push(source);
                }
                documents.push(with(source, done.document));
            }
            Err(failure) => {
                bad.push(source);
                documents.push(json!({ "source": source, "good": false, "error": failure.told().0 }));
                if !ui.json {
                    failure.render(ui);
                }
            }
        }
    }
    if ui.json {
        ui.json(&documents);
    } else if bad.is_empty() {
        ui.out(format!("{} all {} sources are back", ui.paint(Tone::Good, "✓"), names.len()));
    } else {
        let list: Vec<&str> = bad.iter().map(|source| source.as_str()).collect();
        let (sign, back) = (ui.paint(Tone::Bad, "✗"), names.len() - bad.len());
        ui.out(format!("{sign} {back} of {} sources are back; not: {}", names.len(), list.join(", ")));
        ui.say("what stood in the way being mended, these go on where they ended:");
        bad.iter().for_each(|source| ui.say(format!("  {}", args.alone(source))));
    }
    Ok(if bad.is_empty() { Exit::Good } else { Exit::Bad })
}

/// Plans all of them, and makes sure that none stands in another's way.
async fn plans(
    args: &Args,
    context: &Context,
    desk: &Desk,
    names: &[SourceName],
) -> Result<Vec<(SourceName, Done)>, Failure> {
    let step = if args.dry_run { Step::Show } else { Step::Check };
    let (mut planned, mut taken) = (Vec::new(), BTreeMap::new());
    for source in names {
        let done = one(args, context, desk, source, step).await.map_err(|failure| {
            let others = names.iter().filter(|other| *other != source);
            let alone: String = others.map(|other| format!("\n  {}", args.alone(other))).collect();
            failure.hint(format!("nothing was touched, because of {source}; without it:{alone}"))
        })?;
        for what in &done.takes {
            if let Some(other) = taken.insert(what.clone(), source) {
                return Err(Failure::wrong(format!("restore {source}: {other} goes into {what}, too"))
                    .hint("`restore` in each source's file names a place of its own; nothing was touched"));
            }
        }
        planned.push((source.clone(), done));
    }
    Ok(planned)
}

/// A document that says whose it is.
fn with(source: &SourceName, mut document: Value) -> Value {
    if let Value::Object(fields) = &mut document {
        fields.insert("source".into(), json!(source));
    }
    document
}
