//! `people`: who there is, under which names they are known elsewhere, and in which groups they are.
//!
//! A name elsewhere leads to one person at the most, so that nobody is taken for two.

use super::{PEOPLE_KEYS, PERSON_KEYS, Reader};
use crate::config::check::shown_text;
use crate::config::yaml::{Key, Node};
use crate::model::{GroupName, PersonName};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// People and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct People {
    /// By the name that runs and the audit show.
    pub users: BTreeMap<PersonName, Person>,
    /// The members of each group.
    pub groups: BTreeMap<GroupName, BTreeSet<PersonName>>,
}

impl People {
    /// The person who is that user of this machine.
    pub fn of_unix(&self, user: &str) -> Option<&PersonName> {
        self.users.iter().find(|(_, person)| person.unix.iter().any(|name| name == user)).map(|(name, _)| name)
    }

    /// The person whose commits carry that address. Someone without a `git` address commits under their `mail`.
    pub fn of_git(&self, address: &str) -> Option<&PersonName> {
        let has = |name: &String| same(name, address);
        let by_git = self.users.iter().find(|(_, person)| person.git.iter().any(has));
        by_git.or_else(|| self.users.iter().find(|(_, person)| person.mail.iter().any(has))).map(|(name, _)| name)
    }

    /// The person who has that name on a forge.
    pub fn of_forge(&self, login: &str) -> Option<&PersonName> {
        let found = self.users.iter().find(|(_, person)| person.forge.iter().any(|name| same(name, login)));
        found.map(|(name, _)| name)
    }

    /// The people behind names of people and groups; a name that nobody has stands for nobody.
    pub fn members(&self, names: &[String]) -> BTreeSet<PersonName> {
        let mut members = BTreeSet::new();
        for name in names {
            match self.users.get_key_value(name.as_str()) {
                Some((person, _)) => {
                    members.insert(person.clone());
                }
                None => members.extend(self.groups.get(name.as_str()).into_iter().flatten().cloned()),
            }
        }
        members
    }

    /// Where mail to that person goes.
    pub fn address(&self, person: &PersonName) -> Option<&str> {
        self.users.get(person)?.mail.as_deref()
    }
}

/// Mail and forges do not tell letters' cases apart.
fn same(one: &str, other: &str) -> bool {
    one.to_lowercase() == other.to_lowercase()
}

/// A person's names elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person {
    /// The address that mail goes to.
    pub mail: Option<String>,
    /// The addresses that commits carry.
    pub git: Vec<String>,
    /// Names on forges.
    pub forge: Vec<String>,
    /// Names as a user of this machine.
    pub unix: Vec<String>,
}

/// The longest address that mail servers pass on, and far above any login's length.
const NAME_MAX_BYTES: usize = 254;

/// Whose a name is so far: kind of name and the name, letter case as it counts there.
type Taken = BTreeMap<(&'static str, String), PersonName>;

impl Reader<'_, '_> {
    pub(super) fn people(&mut self, node: &Node) -> People {
        let mut people = People::default();
        let Some(fields) = self.check.fields(node, "`people`", PEOPLE_KEYS, &[]) else { return people };
        let mut taken = Taken::new();
        if let Some(node) = fields.get("users") {
            for (key, node) in self.check.entries(node, "`users`").unwrap_or_default() {
                match PersonName::new(key.name.as_str()) {
                    Ok(name) => {
                        let person = self.person(&name, node, &mut taken);
                        people.users.insert(name, person);
                    }
                    Err(why) => {
                        self.check.error(key.place, why.to_string());
                    }
                }
            }
        }
        if let Some(node) = fields.get("groups") {
            for (key, node) in self.check.entries(node, "`groups`").unwrap_or_default() {
                self.group(key, node, &mut people);
            }
        }
        people
    }

    fn person(&mut self, name: &PersonName, node: &Node, taken: &mut Taken) -> Person {
        let mut person = Person::default();
        let Some(fields) = self.check.fields(node, &format!("the person `{name}`"), PERSON_KEYS, &[]) else {
            return person;
        };
        if let Some(node) = fields.get("mail") {
            person.mail = self.name_elsewhere(name, node, "mail", true, taken);
        }
        for (key, list) in [("git", &mut person.git), ("forge", &mut person.forge), ("unix", &mut person.unix)] {
            if let Some(node) = fields.get(key) {
                for item in self.check.items(node, &format!("`{key}`")) {
                    list.extend(self.name_elsewhere(name, item, key, key == "git", taken));
                }
            }
        }
        person
    }

    /// One name of that kind, which nobody else may have.
    fn name_elsewhere(
        &mut self,
        person: &PersonName,
        node: &Node,
        kind: &'static str,
        address: bool,
        taken: &mut Taken,
    ) -> Option<String> {
        let text = self.check.text(node, &format!("`{kind}`"))?;
        let told = shown_text(node, text);
        if let Err(why) = if address { is_address(text) } else { is_login(text) } {
            self.check.error(node.place, format!("`{told}` is no name for `{kind}`: it {why}"));
            return None;
        }
        // Mail and forges do not tell letters' cases apart, and nobody should count twice by writing a name in capitals.
        let counts = if kind == "unix" { text.to_owned() } else { text.to_lowercase() };
        match taken.entry((kind, counts)) {
            Entry::Vacant(free) => {
                free.insert(person.clone());
                Some(text.to_owned())
            }
            Entry::Occupied(other) if other.get() == person => {
                self.check.error(node.place, format!("`{told}` stands twice under `{kind}` of `{person}`"));
                None
            }
            Entry::Occupied(other) => {
                let message =
                    format!("`{told}` under `{kind}` is `{}` already, and cannot be `{person}` too", other.get());
                self.check.error(node.place, message);
                None
            }
        }
    }

    fn group(&mut self, key: &Key, node: &Node, people: &mut People) {
        let name = match GroupName::new(key.name.as_str()) {
            Ok(name) => name,
            Err(why) => {
                self.check.error(key.place, why.to_string());
                return;
            }
        };
        if people.users.contains_key(name.as_str()) {
            self.check.error(key.place, format!("`{name}` is the name of a person, and cannot be a group too"));
        }
        let mut members = BTreeSet::new();
        for item in self.check.items(node, &format!("the group `{name}`")) {
            let Some(text) = self.check.text(item, "a member of a group") else { continue };
            match people.users.keys().find(|user| user.as_str() == text) {
                Some(user) if !members.insert(user.clone()) => {
                    self.check.error(item.place, format!("`{user}` stands twice in the group `{name}`"));
                }
                Some(_) => {}
                None => {
                    let known: Vec<&str> = people.users.keys().map(PersonName::as_str).collect();
                    let otherwise = "`people.users` names the people; groups do not hold groups";
                    self.check.unknown_name(item.place, "person", text, &known, Some(otherwise));
                }
            }
        }
        people.groups.insert(name, members);
    }
}

fn is_login(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > NAME_MAX_BYTES {
        return Err("is longer than 254 bytes");
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("holds blanks or control characters");
    }
    Ok(())
}

pub(super) fn is_address(text: &str) -> Result<(), &'static str> {
    is_login(text)?;
    match text.split_once('@') {
        Some((user, host)) if !host.contains('@') => {
            if user.is_empty() || host.is_empty() {
                return Err("has nothing before or after its `@`");
            }
            Ok(())
        }
        _ => Err("does not have exactly one `@`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Findings;
    use crate::config::daemon::{Daemon, parse};
    use std::path::Path;

    fn read(people: &str) -> Result<Daemon, Findings> {
        let env = |name: &str| (name == "HUSH").then(|| "hush hush".to_owned());
        parse("mainstay.yml", &format!("people: {people}\nrepos: {{a: /x}}\n"), &env, Path::new("/srv/ci"))
    }

    #[test]
    fn people_and_groups_are_understood() {
        let people = read(
            "
  groups: { release-managers: [ana, ben], alone: ben }
  users:
    ana: { mail: ana@example.com, git: [ana@example.com, ana@home.example], unix: ana }
    ben: { git: ben@example.com, forge: [ben, Ben-2], unix: [ben, 1000] }
    cem:",
        )
        .unwrap()
        .people;
        let ana = &people.users["ana"];
        assert_eq!(ana.mail.as_deref(), Some("ana@example.com"));
        assert_eq!(ana.git, ["ana@example.com", "ana@home.example"]);
        assert_eq!(people.users["ben"].forge, ["ben", "Ben-2"]);
        assert_eq!(people.users["cem"], Person::default());
        assert_eq!(people.of_unix("1000").unwrap().as_str(), "ben");
        assert_eq!(people.of_unix("Ana"), None);
        let name = |found: Option<&PersonName>| found.map(ToString::to_string).unwrap_or_default();
        assert_eq!(name(people.of_git("ANA@home.example")), "ana");
        assert_eq!(name(people.of_git("ben@example.com")), "ben");
        assert_eq!((name(people.of_forge("BEN-2")), people.of_forge("ana")), ("ben".to_owned(), None));
        let members = |names: &[&str]| -> Vec<String> {
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            people.members(&names).iter().map(ToString::to_string).collect()
        };
        assert_eq!(members(&["release-managers"]), ["ana", "ben"]);
        assert_eq!(members(&["cem", "alone", "ben", "nobody"]), ["ben", "cem"]);
        assert!(members(&[]).is_empty());
        assert_eq!(people.address(&PersonName::new("ana").unwrap()), Some("ana@example.com"));
        assert_eq!(people.address(&PersonName::new("ben").unwrap()), None);
        let members: Vec<_> = people.groups["release-managers"].iter().map(PersonName::as_str).collect();
        assert_eq!(members, ["ana", "ben"]);
        assert_eq!(people.groups["alone"].len(), 1);
    }

    #[test]
    fn who_has_no_git_address_commits_under_their_mail() {
        let people = read("{ users: { ana: { mail: a@b }, ben: { git: a@b }, cem: { mail: c@d } } }").unwrap().people;
        assert_eq!(people.of_git("A@b").unwrap().as_str(), "ben");
        assert_eq!(people.of_git("c@D").unwrap().as_str(), "cem");
        assert_eq!(people.of_git(""), None);
    }

    #[test]
    fn without_people_there_are_none() {
        for text in ["", "{}", "{ users: , groups: }"] {
            assert_eq!(read(text).unwrap().people, People::default(), "{text}");
        }
    }

    #[test]
    fn each_mistake_has_its_sentence_and_its_place() {
        let users = |rest: &str| format!("{{ users: {{ {rest} }} }}");
        // What is wrong, its sentence, and the text that it points at.
        let table = [
            ("{ user: {} }".to_owned(), "unknown key `user` in `people`", "user"),
            ("[ana]".to_owned(), "`people` is a map", "[ana]"),
            (users("ana: { mails: a@b }"), "unknown key `mails` in the person `ana`", "mails"),
            (users("ana: { mail: [a@b] }"), "`mail` is a text", "[a@b]"),
            (users("ana: { mail: ana }"), "does not have exactly one `@`", "ana }"),
            (users("ana: { mail: a@b@c }"), "does not have exactly one `@`", "a@b@c"),
            (users("ana: { mail: '@c' }"), "nothing before or after", "'@c'"),
            (users("ana: { git: ['a@b', 'a @c'] }"), "holds blanks", "'a @c'"),
            (users("ana: { git: \"a\\u0007@c\" }"), "control characters", "\"a\\u0007@c\""),
            (users("ana: { mail: '${HUSH}' }"), "(a value that is not shown)", "'${HUSH}'"),
            (users("ana: { unix: '' }"), "it is empty", "''"),
            (users(&format!("ana: {{ forge: {} }}", "x".repeat(255))), "longer than 254 bytes", "xxx"),
            (users("'a b': {}"), "the person's name `a b` may hold only letters", "'a b'"),
            (users("ana: { git: a@b }, ben: { git: A@B }"), "is `ana` already, and cannot be `ben` too", "A@B"),
            (users("ana: { mail: a@b }, ben: { mail: a@b }"), "is `ana` already", "a@b } }"),
            (users("ana: { forge: x1 }, ben: { forge: [y1, X1] }"), "is `ana` already", "X1"),
            (users("ana: { unix: u1 }, ben: { unix: u1 }"), "is `ana` already", "u1 } }"),
            (users("ana: { unix: [u1, u1] }"), "stands twice", "u1]"),
            ("{ users: { ana: {} }, groups: { all: [ana, anna] } }".to_owned(), "there is no person `anna`", "anna"),
            (
                "{ users: { ana: {} }, groups: { all: [], two: [all] } }".to_owned(),
                "there is no person `all`",
                "all] }",
            ),
            ("{ users: { ana: {} }, groups: { all: [ana, ana] } }".to_owned(), "twice in the group", "ana] }"),
            ("{ users: { ana: {} }, groups: { ana: [] } }".to_owned(), "`ana` is the name of a person", "ana: []"),
            ("{ groups: { '-x': [] } }".to_owned(), "the group's name `-x`", "'-x'"),
        ];
        for (text, words, place) in table {
            let findings = read(&text).expect_err(&text);
            let [finding] = findings.list.as_slice() else { panic!("{text}\n{findings}") };
            assert!(finding.message.contains(words), "{text}\n--- wanted: {words}\n--- said:\n{findings}");
            let column = format!("people: {text}").find(place).unwrap() + 1;
            assert_eq!((finding.line, finding.column), (1, column), "{findings}");
            assert!(!finding.message.contains("hush hush"), "{findings}");
        }
    }

    #[test]
    fn the_same_name_of_another_kind_is_fine() {
        let people = read("{ users: { ana: { mail: a@b, git: a@b, forge: ana, unix: ana } } }").unwrap().people;
        assert_eq!(people.users["ana"].git, ["a@b"]);
        read("{ users: { ana: { unix: x }, ben: { unix: X, forge: x } } }").unwrap();
    }
}
