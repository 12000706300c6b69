//! Whether a deploy may begin: a pure function of what is known. Asked again whenever something changes.

use crate::model::DeployId;
use crate::model::deploy::DeployKind;
use jiff::Timestamp;

/// How a commit stands to a held one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relation {
    /// It does not contain it, or is another repository's.
    Unrelated,
    /// It is it.
    Same,
    /// It contains it.
    Contains,
    /// It contains it, and has taken it back.
    Undone,
}

/// A hold in force, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HoldFact {
    /// Its number.
    pub id: u64,
    /// The held commit, shortened; `None`: the whole environment.
    pub commit: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// Only a person lifts it.
    pub strict: bool,
    /// How the commit stands to it.
    pub relation: Relation,
}

/// What people have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApprovalFact {
    /// The environment asks nobody.
    NotNeeded,
    /// They were not asked about exactly this yet.
    Unasked,
    /// They are being asked.
    Open,
    /// Enough said yes, and it still counts.
    Granted,
}

/// What is known of a deploy that has not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Why it is asked for.
    pub kind: DeployKind,
    /// `from` of the environment names where it comes from.
    pub allowed: bool,
    /// For people: repository, branch, pipeline.
    pub comes_from: String,
    /// Why its history in Git cannot be taken: nobody knows what is held, and what comes after what.
    pub history: Option<String>,
    /// A freeze lasts until then.
    pub frozen_until: Option<Timestamp>,
    /// Its commit is an ancestor of the one that serves.
    pub behind: bool,
    /// A later request whose commit contains this one's.
    pub newer: Option<DeployId>,
    /// What an earlier commit asks for here, where newer ones wait for that.
    pub before: Option<String>,
    /// The holds in force.
    pub holds: Vec<HoldFact>,
    /// Why a person has to act first.
    pub attention: Option<String>,
    /// What people have said.
    pub approval: ApprovalFact,
    /// Why nobody ever will say yes: rejected, expired, impossible.
    pub denied: Option<String>,
    /// The environment's name.
    pub environment: String,
}

/// What is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Admission {
    /// It will never begin.
    Refuse(String),
    /// A newer one takes its place.
    Supersede(DeployId),
    /// People have to be asked; this stands above everything else in what they are shown.
    Ask(Option<String>),
    /// Nothing, until somebody answers.
    Wait,
    /// It may begin when the environment is free.
    Begin {
        /// Holds that its commit has taken back.
        lifts: Vec<u64>,
        /// Holds that it contains: turning bad, it makes them strict.
        tries: Vec<u64>,
    },
}

/// What is to be done with a deploy that has not begun.
pub(super) fn admit(facts: &Facts) -> Admission {
    // The way back is never barred.
    if facts.kind == DeployKind::Rollback {
        return Admission::Begin { lifts: Vec::new(), tries: Vec::new() };
    }
    let environment = &facts.environment;
    if !facts.allowed {
        return Admission::Refuse(format!(
            "{} may not deploy to {environment}\nhint: `environments.{environment}.from` in mainstay.yml names who may",
            facts.comes_from
        ));
    }
    if let Some(why) = &facts.history {
        return Admission::Refuse(why.clone());
    }
    if let Some(newer) = facts.newer {
        return Admission::Supersede(newer);
    }
    let mut contained = Vec::new();
    for hold in &facts.holds {
        let stands = |what: &str| {
            Admission::Refuse(format!(
                "{what}: {} (held by {})\nhint: a revert lifts it; so does `mainstay release-hold {environment}`",
                hold.reason, hold.by
            ))
        };
        match (&hold.commit, hold.relation) {
            (None, _) => {
                return Admission::Refuse(format!(
                    "{environment} is held by {}: {}\nhint: mainstay release-hold {environment}",
                    hold.by, hold.reason
                ));
            }
            (Some(commit), Relation::Same) => return stands(&format!("{commit} is held in {environment}")),
            (Some(commit), Relation::Contains) if hold.strict => {
                return stands(&format!("it contains {commit}, which was rolled back more than once"));
            }
            (Some(_), Relation::Contains) => contained.push(hold),
            (Some(_), Relation::Unrelated | Relation::Undone) => {}
        }
    }
    if facts.kind == DeployKind::Repair && facts.attention.is_some() {
        return Admission::Refuse(format!("a person has to look at {environment} first"));
    }
    // What is put back was there before the freeze.
    if let Some(until) = facts.frozen_until.filter(|_| facts.kind != DeployKind::Repair) {
        return Admission::Refuse(format!(
            "{environment} is frozen until {}\nhint: a rollback is possible all the same",
            until.strftime("%Y-%m-%d %H:%M:%SZ")
        ));
    }
    if facts.behind && facts.kind == DeployKind::Deploy {
        return Admission::Refuse(format!(
            "a commit that contains it serves in {environment} already\nhint: `mainstay rollback {environment}` goes back"
        ));
    }
    if let Some(why) = &facts.denied {
        return Admission::Refuse(why.clone());
    }
    let lifts = facts.holds.iter().filter(|hold| hold.relation == Relation::Undone).map(|hold| hold.id).collect();
    let tries = contained.iter().map(|hold| hold.id).collect();
    match facts.approval {
        // What is put back was approved when it was deployed.
        _ if facts.kind == DeployKind::Repair => Admission::Begin { lifts, tries },
        // It is not asked about yet; and a yes that came early waits for its turn.
        ApprovalFact::Granted | ApprovalFact::Unasked if facts.before.is_some() => Admission::Wait,
        ApprovalFact::Granted | ApprovalFact::NotNeeded => Admission::Begin { lifts, tries },
        ApprovalFact::Open => Admission::Wait,
        ApprovalFact::Unasked => Admission::Ask(contained.first().map(|hold| {
            let commit = hold.commit.as_deref().unwrap_or_default();
            format!("It still contains {commit}, which was rolled back: {}", hold.reason)
        })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kind: DeployKind::Deploy,
            allowed: true,
            comes_from: "shop, branch main, pipeline release".into(),
            history: None,
            frozen_until: None,
            behind: false,
            newer: None,
            before: None,
            holds: Vec::new(),
            attention: None,
            approval: ApprovalFact::NotNeeded,
            denied: None,
            environment: "production".into(),
        }
    }

    fn hold(id: u64, relation: Relation) -> HoldFact {
        let reason = "503 three times".to_owned();
        HoldFact { id, commit: Some("1a2b3c4".into()), reason, by: "mainstay".into(), strict: false, relation }
    }

    fn begins() -> Admission {
        Admission::Begin { lifts: Vec::new(), tries: Vec::new() }
    }

    #[test]
    fn nothing_in_the_way_begins() {
        assert_eq!(admit(&facts()), begins());
        assert_eq!(admit(&Facts { approval: ApprovalFact::Granted, ..facts() }), begins());
    }

    #[test]
    fn each_thing_in_the_way_has_its_sentence() {
        let whole = HoldFact { commit: None, ..hold(1, Relation::Unrelated) };
        let strict = HoldFact { strict: true, ..hold(1, Relation::Contains) };
        for (facts, sentence) in [
            (Facts { allowed: false, ..facts() }, "may not deploy to production"),
            (Facts { frozen_until: Some(Timestamp::from_second(0).unwrap()), ..facts() }, "frozen until 1970-01-01"),
            (Facts { history: Some("no trusted key".into()), ..facts() }, "no trusted key"),
            (Facts { behind: true, ..facts() }, "mainstay rollback production"),
            (Facts { holds: vec![whole], ..facts() }, "production is held by mainstay"),
            (Facts { holds: vec![hold(1, Relation::Same)], ..facts() }, "1a2b3c4 is held in production"),
            (Facts { holds: vec![strict], ..facts() }, "more than once"),
            (Facts { denied: Some("ben rejected it".into()), ..facts() }, "ben rejected it"),
        ] {
            let Admission::Refuse(why) = admit(&facts) else { panic!("{facts:?} was let in") };
            assert!(why.contains(sentence), "{why}");
            // The way back is open all the same.
            assert_eq!(admit(&Facts { kind: DeployKind::Rollback, ..facts }), begins());
        }
    }

    #[test]
    fn a_held_commit_below_asks_people_with_a_warning_first() {
        let below = Facts { holds: vec![hold(7, Relation::Contains)], approval: ApprovalFact::Unasked, ..facts() };
        let Admission::Ask(Some(warning)) = admit(&below) else { panic!("no warning") };
        assert!(warning.contains("1a2b3c4") && warning.contains("503 three times"), "{warning}");
        let tries = Admission::Begin { lifts: Vec::new(), tries: vec![7] };
        assert_eq!(admit(&Facts { approval: ApprovalFact::Granted, ..below.clone() }), tries);
        // Without anybody to ask it gets one try.
        assert_eq!(admit(&Facts { approval: ApprovalFact::NotNeeded, ..below.clone() }), tries);
        assert_eq!(admit(&Facts { approval: ApprovalFact::Open, ..below }), Admission::Wait);
    }

    #[test]
    fn a_revert_lifts_the_hold_and_is_asked_about_without_a_warning() {
        let revert = Facts { holds: vec![hold(7, Relation::Undone)], ..facts() };
        assert_eq!(admit(&revert), Admission::Begin { lifts: vec![7], tries: Vec::new() });
        assert_eq!(admit(&Facts { approval: ApprovalFact::Unasked, ..revert }), Admission::Ask(None));
    }

    #[test]
    fn where_newer_ones_wait_they_are_neither_asked_about_nor_begun_before_their_turn() {
        let behind = |approval| Facts { before: Some("deploy #3".into()), approval, ..facts() };
        for approval in [ApprovalFact::Unasked, ApprovalFact::Open, ApprovalFact::Granted] {
            assert_eq!(admit(&behind(approval)), Admission::Wait, "{approval:?}");
        }
        // What is refused is refused at once, and the way back waits for nobody.
        let frozen = Some(Timestamp::from_second(0).unwrap());
        let refused = Facts { frozen_until: frozen, ..behind(ApprovalFact::Unasked) };
        assert!(matches!(admit(&refused), Admission::Refuse(_)));
        assert_eq!(admit(&Facts { kind: DeployKind::Rollback, ..refused }), begins());
    }

    #[test]
    fn a_newer_one_takes_the_place_of_one_that_waits() {
        let older = Facts { newer: Some(DeployId(9)), approval: ApprovalFact::Open, ..facts() };
        assert_eq!(admit(&older), Admission::Supersede(DeployId(9)));
    }
}
