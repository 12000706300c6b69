use super::*;
use crate::config::daemon::Person;
use crate::model::approval::{Channel, Subject};
use crate::model::{GroupName, Span};
use proptest::prelude::*;
use std::time::Duration;

fn name(text: &str) -> PersonName {
    PersonName::new(text).unwrap()
}

/// Ana, Ben, Cem and Dee; Ana and Ben manage releases.
fn people() -> People {
    let person = |text: &str| Person {
        mail: Some(format!("{text}@example.com")),
        git: vec![format!("{text}@home.example")],
        forge: vec![format!("{text}-forge")],
        unix: vec![format!("u{text}")],
    };
    let users = ["ana", "ben", "cem", "dee"].map(|text| (name(text), person(text)));
    let groups = [(GroupName::new("managers").unwrap(), BTreeSet::from([name("ana"), name("ben")]))];
    People { users: users.into(), groups: groups.into() }
}

fn policy(from: &[&str], required: u32) -> ApprovalPolicy {
    ApprovalPolicy {
        from: from.iter().map(ToString::to_string).collect(),
        required,
        expires: Span(Duration::from_secs(3_600)),
        by: vec![Channel::Mail, Channel::Webhook, Channel::Cli],
        allow_self: false,
        allow_unknown_pusher: false,
        newer: Default::default(),
    }
}

fn request(policy: ApprovalPolicy, excluded: &[&str], unknown: Option<&str>) -> ApprovalRequest {
    ApprovalRequest {
        key: "run/1/go".into(),
        environment: None,
        run: None,
        step: None,
        deploy: None,
        binding: "b".into(),
        subject: Subject::default(),
        policy,
        excluded: excluded.iter().map(|who| Excluded { person: name(who), why: "pushed it".into() }).collect(),
        unknown_pusher: unknown.map(str::to_owned),
        inputs: vec![],
    }
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_772_359_200 + minute * 60).unwrap()
}

fn says(who: &str, verdict: Verdict, channel: Channel, minute: i64) -> Decision {
    let inputs = BTreeMap::new();
    Decision { person: name(who), verdict, channel, inputs, message: None, at: at(minute), withdrawn_at: None }
}

fn yes(who: &str) -> Decision {
    says(who, Verdict::Approve, Channel::Cli, 1)
}

fn no(who: &str) -> Decision {
    says(who, Verdict::Reject, Channel::Cli, 1)
}

fn counted(request: &ApprovalRequest, decisions: &[Decision], minute: i64) -> Tally {
    tally(request, &request.policy, &people(), decisions, at(60), at(minute))
}

#[test]
fn votes_are_counted_by_the_rules() {
    use Standing::{Expired, Granted, Open, Rejected};
    let plain = |required| request(policy(&["managers", "cem"], required), &[], None);
    let withdrawn = Decision { withdrawn_at: Some(at(2)), ..yes("ana") };
    let twice = [withdrawn.clone(), yes("ana")];
    let mailed = says("ana", Verdict::Approve, Channel::Mail, 1);
    let only_cli = |required| {
        let mut request = plain(required);
        request.policy.by = vec![Channel::Cli];
        request
    };
    let own = |allowed| {
        let mut request = request(policy(&["managers"], 1), &["ana"], None);
        request.policy.allow_self = allowed;
        request
    };
    let pushed_by_nobody = |allowed| {
        let mut request = request(policy(&["managers"], 1), &[], Some("zoe"));
        request.policy.allow_unknown_pusher = allowed;
        request
    };
    // What is asked, what was said, the minute, where it stands, how many are missing.
    let table = [
        ("nobody", plain(1), vec![], 5, Open, 1),
        ("one of one", plain(1), vec![yes("ana")], 5, Granted, 0),
        ("one of two", plain(2), vec![yes("ana")], 5, Open, 1),
        ("two of two", plain(2), vec![yes("ana"), yes("cem")], 5, Granted, 0),
        ("twice the same", plain(2), twice.to_vec(), 5, Open, 1),
        ("taken back", plain(1), vec![withdrawn], 5, Open, 1),
        ("somebody else", plain(1), vec![yes("dee")], 5, Open, 1),
        ("nobody we know", plain(1), vec![yes("zoe")], 5, Open, 1),
        ("one no", plain(1), vec![yes("ana"), no("ben")], 5, Rejected(name("ben")), 0),
        ("a no of somebody else", plain(1), vec![yes("ana"), no("dee")], 5, Granted, 0),
        ("in time", plain(1), vec![yes("ana")], 60, Granted, 0),
        ("too late", plain(1), vec![], 60, Expired, 1),
        ("not enough in time", plain(2), vec![yes("ana")], 60, Expired, 1),
        ("said too late", plain(1), vec![says("ana", Verdict::Approve, Channel::Cli, 60)], 61, Expired, 1),
        ("a way that does not count", only_cli(1), vec![mailed.clone()], 5, Open, 1),
        ("a way that counts", plain(1), vec![mailed], 5, Granted, 0),
        ("one's own change", own(false), vec![yes("ana")], 5, Open, 1),
        ("one's own change, allowed", own(true), vec![yes("ana")], 5, Granted, 0),
        ("a no to one's own change", own(false), vec![no("ana")], 5, Open, 1),
        ("pushed by nobody", pushed_by_nobody(false), vec![yes("ana"), yes("ben")], 5, Open, 1),
        ("pushed by nobody, a no", pushed_by_nobody(false), vec![no("ana")], 5, Rejected(name("ana")), 1),
        ("pushed by nobody, allowed", pushed_by_nobody(true), vec![yes("ana")], 5, Granted, 0),
        ("nobody is required", plain(0), vec![], 5, Open, 1),
    ];
    for (what, request, decisions, minute, state, missing) in table {
        let tally = counted(&request, &decisions, minute);
        assert_eq!((&tally.state, tally.missing), (&state, missing), "{what}: {tally:?}");
    }
}

#[test]
fn a_role_that_was_taken_away_takes_the_vote_along() {
    let request = request(policy(&["managers"], 2), &[], None);
    let decisions = [yes("ana"), yes("ben")];
    let mut people = people();
    let count = |people: &People| tally(&request, &request.policy, people, &decisions, at(60), at(5));
    assert_eq!(count(&people).state, Standing::Granted);
    people.groups.get_mut("managers").unwrap().remove("ben");
    let tally = count(&people);
    assert_eq!((tally.state, tally.missing), (Standing::Open, 1));
    assert_eq!(tally.impossible.unwrap(), "it cannot be granted: 2 must say yes, and only ana may");
    people.users.remove("ana");
    assert!(count(&people).eligible.is_empty(), "a group's member who is no person counts");
}

#[test]
fn what_cannot_be_granted_says_why() {
    let impossible = |request: &ApprovalRequest| counted(request, &[], 5).impossible;
    assert_eq!(impossible(&request(policy(&["managers"], 2), &[], None)), None);
    let table = [
        (
            request(policy(&["managers"], 2), &["ana", "dee"], None),
            "it cannot be granted: 2 must say yes, and only ben may; not ana (pushed it)",
        ),
        (
            request(policy(&["ana"], 1), &["ana"], None),
            "it cannot be granted: 1 must say yes, and nobody may; not ana (pushed it)",
        ),
        (request(policy(&["leavers"], 1), &[], None), "nobody can approve it: nobody is in leavers"),
        (
            request(policy(&["managers"], 1), &[], Some("zoe")),
            "nobody can approve it: `zoe` pushed it, who is nobody in `people` of mainstay.yml, and the policy does not say `allow-unknown-pusher`",
        ),
        (
            request(policy(&["managers"], 1), &[], Some("")),
            "nobody can approve it: it is not known who pushed it, and the policy does not say `allow-unknown-pusher`",
        ),
    ];
    for (request, words) in table {
        assert_eq!(impossible(&request).as_deref(), Some(words));
    }
}

#[test]
fn everybody_with_a_hand_in_it_is_excluded() {
    let people = people();
    let known = |text: &str, known_as| Named { name: Some(text.to_owned()), known_as };
    let written = |commit: &str, author: &str, committer: &str| Written {
        commit: commit.into(),
        author: author.into(),
        committer: committer.into(),
    };
    let commits = [
        written("11111111", "Ben@Home.example", "noreply@forge.example"),
        written("22222222", "cem@example.com", "ben@home.example"),
        written("33333333", "zoe@example.com", "zoe@example.com"),
    ];
    let started = [(known("udee", KnownAs::Unix), "triggered it")];
    let (list, unknown) = excluded(&people, &known("ANA-forge", KnownAs::Forge), &started, &commits);
    let told: Vec<_> = list.iter().map(|e| format!("{}: {}", e.person, e.why)).collect();
    assert_eq!(
        told,
        [
            "ana: pushed it",
            "ben: author of 11111111, committer of 22222222",
            "cem: author of 22222222",
            "dee: triggered it"
        ]
    );
    assert_eq!(unknown, None);
    // Names count as what they are.
    for (named, who) in [
        (known("ana", KnownAs::Person), Some("ana")),
        (known("uana", KnownAs::Unix), Some("ana")),
        (known("UANA", KnownAs::Unix), None),
        (known("ana", KnownAs::Unix), None),
        (known("ana", KnownAs::Forge), None),
        (known("ana", KnownAs::Any), Some("ana")),
        (known("uben", KnownAs::Any), Some("ben")),
        (known("ben-forge", KnownAs::Any), Some("ben")),
        (known("ben@example.com", KnownAs::Any), Some("ben")),
        (Named { name: None, known_as: KnownAs::Any }, None),
    ] {
        let (list, unknown) = excluded(&people, &named, &[], &[]);
        assert_eq!(list.first().map(|e| e.person.as_str()), who, "{named:?}");
        assert_eq!(unknown, who.is_none().then(|| named.name.clone().unwrap_or_default()), "{named:?}");
    }
    let many: Vec<Written> = (0..9).map(|n| written(&format!("{n}"), "ana@example.com", "ana@example.com")).collect();
    let (list, _) = excluded(&people, &known("ana", KnownAs::Person), &[], &many);
    assert_eq!(list[0].why, "pushed it, author of 0, author of 1 and 7 more");
}

fn decisions() -> impl Strategy<Value = Vec<Decision>> {
    let who = prop::sample::select(vec!["ana", "ben", "cem", "dee", "zoe"]);
    let channel = prop::sample::select(vec![Channel::Mail, Channel::Webhook, Channel::Cli]);
    let one = (who, any::<bool>(), channel, 0_i64..90, any::<bool>()).prop_map(|(who, good, channel, minute, back)| {
        let verdict = if good { Verdict::Approve } else { Verdict::Reject };
        Decision { withdrawn_at: back.then(|| at(minute + 1)), ..says(who, verdict, channel, minute) }
    });
    prop::collection::vec(one, 0..8)
}

proptest! {
    #[test]
    fn only_votes_that_count_change_anything(
        from in prop::sample::subsequence(vec!["managers", "ana", "cem", "dee"], 0..4),
        required in 0_u32..4,
        barred in prop::sample::subsequence(vec!["ana", "ben", "cem"], 0..3),
        unknown in any::<bool>(),
        own in any::<bool>(),
        by in prop::sample::subsequence(vec![Channel::Mail, Channel::Webhook, Channel::Cli], 0..3),
        said in decisions(),
        minute in 0_i64..120,
    ) {
        let mut asked = request(policy(&from, required), &barred, unknown.then_some("zoe"));
        asked.policy.by = by;
        asked.policy.allow_self = own;
        let tally = counted(&asked, &said, minute);
        prop_assert!(tally.counted.is_subset(&tally.eligible) && tally.eligible.is_subset(&tally.members));
        if !own {
            prop_assert!(tally.eligible.iter().all(|person| !barred.contains(&person.as_str())));
            prop_assert!(!unknown || tally.eligible.is_empty());
        }
        let really = |person: &PersonName, verdict| said.iter().any(|d| {
            d.person == *person && d.verdict == verdict && d.withdrawn_at.is_none()
                && asked.policy.by.contains(&d.channel) && d.at < at(60)
        });
        prop_assert!(tally.counted.iter().all(|person| really(person, Verdict::Approve)));
        match &tally.state {
            Standing::Granted => prop_assert!(tally.counted.len() >= required.max(1) as usize && tally.missing == 0),
            Standing::Rejected(person) => prop_assert!(really(person, Verdict::Reject) && tally.members.contains(person)),
            Standing::Expired => prop_assert!(minute >= 60 && tally.missing > 0),
            Standing::Open => prop_assert!(minute < 60 && tally.missing > 0),
        }
        // The order in which people speak does not matter, nor do those who are not asked.
        let mut turned = said.clone();
        turned.reverse();
        prop_assert_eq!(&counted(&asked, &turned, minute).counted, &tally.counted);
        let mut others = said.clone();
        others.push(yes("zoe"));
        others.extend(people().users.keys().filter(|p| !tally.eligible.contains(*p)).map(|p| yes(p.as_str())));
        prop_assert_eq!(&counted(&asked, &others, minute).state, &tally.state);
        if tally.impossible.is_some() {
            prop_assert!(tally.state != Standing::Granted);
        }
    }
}
