//! Who may say yes, and whether enough people did. Pure: a request, the people there are now, what was said, and the
//! time go in; a [`Tally`] comes out. Asked anew whenever something is decided, shown or used, so that a vote of somebody
//! who may no longer vote stops counting at once.

use crate::config::daemon::People;
use crate::model::PersonName;
use crate::model::approval::{ApprovalPolicy, ApprovalRequest, Decision, Excluded, Verdict};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};

/// Where the votes stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Not enough yet.
    Open,
    /// Enough people said yes.
    Granted,
    /// This person said no.
    Rejected(PersonName),
    /// Its time is over.
    Expired,
}

/// The votes, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Everybody whom the policy names, as groups are now.
    pub members: BTreeSet<PersonName>,
    /// Those of them whose yes counts.
    pub eligible: BTreeSet<PersonName>,
    /// Those whose yes counts and was said.
    pub counted: BTreeSet<PersonName>,
    /// So many more have to say yes.
    pub missing: u32,
    /// Where it stands.
    pub state: Standing,
    /// Why it cannot be granted as things are, in words.
    pub impossible: Option<String>,
}

/// Counts. `decisions` are all that were made; those taken back do not count. `policy` is the one in force, which need not be
/// the one of the day on which it was asked.
pub fn tally(
    request: &ApprovalRequest,
    policy: &ApprovalPolicy,
    people: &People,
    decisions: &[Decision],
    expires_at: Timestamp,
    now: Timestamp,
) -> Tally {
    let members = members(people, &policy.from);
    let excluded = |person: &PersonName| !policy.allow_self && request.excluded.iter().any(|e| e.person == *person);
    let others: BTreeSet<PersonName> = members.iter().filter(|person| !excluded(person)).cloned().collect();
    let unknown = unknown_pusher(request, policy);
    let eligible = if unknown.is_some() { BTreeSet::new() } else { others.clone() };
    let counts = |decision: &&Decision| {
        decision.withdrawn_at.is_none() && policy.by.contains(&decision.channel) && decision.at < expires_at
    };
    let standing: Vec<&Decision> = decisions.iter().filter(counts).collect();
    let said = |verdict: Verdict, by: &BTreeSet<PersonName>| -> BTreeSet<PersonName> {
        let who = standing.iter().filter(|decision| decision.verdict == verdict && by.contains(&decision.person));
        who.map(|decision| decision.person.clone()).collect()
    };
    let counted = said(Verdict::Approve, &eligible);
    // A policy for nobody is not one that everybody has met.
    let required = policy.required.max(1);
    let missing = required.saturating_sub(u32::try_from(counted.len()).unwrap_or(u32::MAX));
    // A no is also taken where a yes could not be trusted.
    let state = match said(Verdict::Reject, &others).into_iter().next() {
        Some(person) => Standing::Rejected(person),
        None if missing == 0 => Standing::Granted,
        None if now >= expires_at => Standing::Expired,
        None => Standing::Open,
    };
    let impossible = impossible(request, policy, &members, &eligible, unknown, required);
    Tally { members, eligible, counted, missing, state, impossible }
}

/// Why this person's answer does not count, in words that fit after their name; nothing when it does.
pub fn why_not(
    request: &ApprovalRequest,
    policy: &ApprovalPolicy,
    people: &People,
    person: &PersonName,
    verdict: Verdict,
) -> Option<String> {
    if !people.users.contains_key(person) {
        return Some("is no longer in `people` of mainstay.yml".to_owned());
    }
    if !members(people, &policy.from).contains(person) {
        return Some(format!("is not among those who may: {}", policy.from.join(", ")));
    }
    let excluded = request.excluded.iter().find(|excluded| excluded.person == *person && !policy.allow_self);
    if let Some(excluded) = excluded {
        return Some(format!("may not approve their own change ({})", excluded.why));
    }
    match unknown_pusher(request, policy) {
        Some(pusher) if verdict == Verdict::Approve => {
            Some(format!("cannot be told from whoever pushed it: {}", nobody(pusher)))
        }
        _ => None,
    }
}

/// The people of these names and groups, as they are now. A name that is gone names nobody.
pub fn members(people: &People, from: &[String]) -> BTreeSet<PersonName> {
    let mut found = BTreeSet::new();
    for name in from {
        match people.groups.get(name.as_str()) {
            Some(group) => found.extend(group.iter().filter(|person| people.users.contains_key(*person)).cloned()),
            None => found.extend(people.users.keys().filter(|person| person.as_str() == name).cloned()),
        }
    }
    found
}

fn unknown_pusher<'r>(request: &'r ApprovalRequest, policy: &ApprovalPolicy) -> Option<&'r str> {
    // Where one's own change may be approved, it does not matter whose it is.
    request.unknown_pusher.as_deref().filter(|_| !policy.allow_unknown_pusher && !policy.allow_self)
}

fn nobody(pusher: &str) -> String {
    if pusher.is_empty() {
        return "it is not known who pushed it".to_owned();
    }
    format!("`{pusher}` pushed it, who is nobody in `people` of mainstay.yml")
}

fn impossible(
    request: &ApprovalRequest,
    policy: &ApprovalPolicy,
    members: &BTreeSet<PersonName>,
    eligible: &BTreeSet<PersonName>,
    unknown: Option<&str>,
    required: u32,
) -> Option<String> {
    if let Some(pusher) = unknown {
        return Some(format!(
            "nobody can approve it: {}, and the policy does not say `allow-unknown-pusher`",
            nobody(pusher)
        ));
    }
    if eligible.len() >= required as usize {
        return None;
    }
    if members.is_empty() {
        return Some(format!("nobody can approve it: nobody is in {}", policy.from.join(", ")));
    }
    let names = eligible.iter().map(PersonName::as_str).collect::<Vec<_>>().join(", ");
    let may = if eligible.is_empty() { "nobody may".to_owned() } else { format!("only {names} may") };
    let not: Vec<String> = request
        .excluded
        .iter()
        .filter(|excluded| members.contains(&excluded.person))
        .map(|excluded| format!("{} ({})", excluded.person, excluded.why))
        .collect();
    let not = if not.is_empty() { String::new() } else { format!("; not {}", not.join(", ")) };
    Some(format!("it cannot be granted: {required} must say yes, and {may}{not}"))
}

/// Under which kind of name somebody is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownAs {
    /// A person of `mainstay.yml`: a token or the socket said so.
    Person,
    /// The sender that a forge named.
    Forge,
    /// The user that a hook saw.
    Unix,
    /// It is not known which kind; everybody who has that name anywhere is meant.
    Any,
}

/// Somebody as a run knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, when it is known at all.
    pub name: Option<String>,
    /// What kind of name.
    pub known_as: KnownAs,
}

/// Who wrote a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The commit, short.
    pub commit: String,
    /// The author's address.
    pub author: String,
    /// The committer's address.
    pub committer: String,
}

/// Those who may not approve because the change is theirs, and the pusher when it is nobody we know: `pushed` is whoever
/// moved the ref, `started` are those who triggered or retried a run by hand, with the words for it, and `commits` are
/// all since the environment's last release. A name that two people have in different places means both.
pub fn excluded(
    people: &People,
    pushed: &Named,
    started: &[(Named, &str)],
    commits: &[Written],
) -> (Vec<Excluded>, Option<String>) {
    let mut why: BTreeMap<PersonName, Vec<String>> = BTreeMap::new();
    let pushers = of_name(people, pushed);
    let unknown = pushers.is_empty().then(|| pushed.name.clone().unwrap_or_default());
    for person in pushers {
        why.entry(person).or_default().push("pushed it".to_owned());
    }
    for (named, what) in started {
        for person in of_name(people, named) {
            why.entry(person).or_default().push((*what).to_owned());
        }
    }
    for written in commits {
        for (address, role) in [(&written.author, "author"), (&written.committer, "committer")] {
            for person in of_git(people, address) {
                let whys = why.entry(person).or_default();
                let author = format!("author of {}", written.commit);
                // Most people commit what they wrote.
                if role == "author" || !whys.contains(&author) {
                    whys.push(format!("{role} of {}", written.commit));
                }
            }
        }
    }
    let told = |whys: Vec<String>| {
        // Enough to believe it; a long branch has hundreds of commits.
        const TOLD: usize = 3;
        let more = whys.len().saturating_sub(TOLD);
        let mut text = whys.into_iter().take(TOLD).collect::<Vec<_>>().join(", ");
        if more > 0 {
            text.push_str(&format!(" and {more} more"));
        }
        text
    };
    let list = why.into_iter().map(|(person, whys)| Excluded { person, why: told(whys) }).collect();
    (list, unknown)
}

fn of_name(people: &People, named: &Named) -> BTreeSet<PersonName> {
    let Some(name) = named.name.as_deref().filter(|name| !name.is_empty()) else { return BTreeSet::new() };
    let any = named.known_as == KnownAs::Any;
    let mut found = BTreeSet::new();
    for (person, names) in &people.users {
        let as_person = (any || named.known_as == KnownAs::Person) && person.as_str() == name;
        let forge = (any || named.known_as == KnownAs::Forge) && names.forge.iter().any(|n| same(n, name));
        let unix = (any || named.known_as == KnownAs::Unix) && names.unix.iter().any(|n| n == name);
        if as_person || forge || unix {
            found.insert(person.clone());
        }
    }
    if any {
        found.extend(of_git(people, name));
    }
    found
}

fn of_git(people: &People, address: &str) -> BTreeSet<PersonName> {
    let has = |names: &crate::config::daemon::Person| {
        names.git.iter().chain(names.mail.as_ref()).any(|known| same(known, address))
    };
    people.users.iter().filter(|(_, names)| has(names)).map(|(person, _)| person.clone()).collect()
}

/// Addresses and names on forges do not tell letters' cases apart.
fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.trim().to_lowercase()
}

#[cfg(test)]
mod tests;
