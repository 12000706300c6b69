//! What the keeper finds wrong with sources, written into the store with the messages and the audit that belong to it.

use crate::backup::keeper::{Book, Entry, Episode};
use crate::config::daemon::Daemon;
use crate::model::ids::PersonName;
use crate::model::source_view::ConcernKind;
use crate::model::{Asker, SourceName};
use crate::notify::Message;
use crate::notify::channels::MAIL;
use crate::store::{Act, ActKind, ConcernEffects, ConcernRow, Outgoing, Store};
use futures_util::FutureExt as _;
use jiff::Timestamp;
use serde_json::json;
use std::sync::Arc;

/// Channel and recipient of everybody who is told about sources.
pub(super) type Told = Vec<(String, String)>;

/// Who is told about sources: `notify.alerts`, or everybody with an address; and every webhook.
pub(super) fn told(config: &Daemon) -> Told {
    reached(config, config.notify.alerts.clone().unwrap_or_else(|| config.people.users.keys().cloned().collect()))
}

/// Those of these people who can be sent mail, and every webhook: channel and receiver.
pub(super) fn reached(config: &Daemon, people: impl IntoIterator<Item = PersonName>) -> Told {
    let has_address = |person: &PersonName| config.notify.smtp.is_some() && config.people.address(person).is_some();
    let by_mail = people.into_iter().filter(has_address).map(|person| (MAIL.to_owned(), person.to_string()));
    by_mail.chain(config.notify.webhooks.keys().map(|name| (name.clone(), String::new()))).collect()
}

/// The book of a source. `who` is asked when something is told, so that it follows the configuration in force.
pub(super) fn book(store: &Store, source: &SourceName, who: Arc<dyn Fn() -> Told + Send + Sync>) -> Book {
    let (store, source) = (store.clone(), source.clone());
    Arc::new(move |entry| {
        let (store, source, who) = (store.clone(), source.clone(), Arc::clone(&who));
        async move { write(&store, &source, &who(), entry).await }.boxed()
    })
}

async fn write(store: &Store, source: &SourceName, who: &Told, entry: Entry) -> Result<Vec<Episode>, String> {
    let rows = match entry {
        Entry::Read => store.concerns(source.clone()).await,
        Entry::Begin(episode) => {
            let effects = effects(source, who, &episode, None)?;
            let Episode { kind, since, words, memo } = episode;
            let row = ConcernRow { kind: kind.as_str().to_owned(), since, words, memo };
            store.begin_concern(source.clone(), row, effects).await
        }
        Entry::End(kind, words) => {
            let open = store.concerns(source.clone()).await.map_err(|error| error.to_string())?;
            let open = open.into_iter().filter_map(episode).find(|episode| episode.kind == kind);
            let effects = open.map(|open| effects(source, who, &open, Some(&words))).transpose()?;
            store.end_concern(source.clone(), kind.as_str().to_owned(), effects.unwrap_or_default()).await
        }
    };
    let rows = rows.map_err(|error| error.to_string())?;
    Ok(rows.into_iter().filter_map(episode).collect())
}

/// What was written by a newer version and is not known here stays in the store.
fn episode(row: ConcernRow) -> Option<Episode> {
    let kind = ConcernKind::of(&row.kind)?;
    Some(Episode { kind, since: row.since, words: row.words, memo: row.memo })
}

/// The messages and the audit of an episode that begins, or that is `over` and why.
fn effects(source: &SourceName, who: &Told, episode: &Episode, over: Option<&str>) -> Result<ConcernEffects, String> {
    let words = over.unwrap_or(&episode.words);
    let message = Message::Source {
        source: source.clone(),
        concern: episode.kind,
        words: words.to_owned(),
        since: episode.since,
        over: over.is_some(),
    };
    let message = message.to_json().map_err(|error| error.to_string())?;
    let step = if over.is_some() { "over" } else { "begin" };
    let outgoing = |(channel, recipient): &(String, String)| Outgoing {
        key: format!(
            "source/{source}/{}/{}/{step}/{channel}/{recipient}",
            episode.kind.as_str(),
            episode.since.as_millisecond()
        ),
        channel: channel.clone(),
        recipient: recipient.clone(),
        message: message.clone(),
    };
    let kind = match (episode.kind, over) {
        (ConcernKind::SteppedDown, None) => Some(ActKind::StepDown),
        (ConcernKind::SteppedDown, Some(_)) => Some(ActKind::StepUp),
        (ConcernKind::SlotDropped, None) => Some(ActKind::DropSlot),
        _ => None,
    };
    let act = kind.map(|kind| Act {
        by: Asker::daemon(),
        kind,
        subject: format!("source {source}"),
        details: json!({ "words": words, "since": Timestamp::to_string(&episode.since) }),
    });
    Ok(ConcernEffects { messages: who.iter().map(outgoing).collect(), act })
}
