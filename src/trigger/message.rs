//! The message a hook sends over the socket and leaves in the spool: a few lines of text, so that a shell can write it.
//!
//! ```text
//! mainstay-push 1
//! repo shop
//! delivery 1763843123.000000042-4711
//! actor ana
//! OLD NEW refs/heads/main
//! end
//! ```

use super::RefChange;

/// The longest message: a hundred thousand refs of usual length.
pub(super) const MESSAGE_MAX_BYTES: usize = 16 << 20;
/// Names of people are short; what is longer is cut.
const ACTOR_MAX_CHARS: usize = 128;

/// What a hook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) repo: String,
    pub(super) delivery: String,
    pub(super) actor: Option<String>,
    pub(super) changes: Vec<RefChange>,
}

impl Message {
    /// Reads a whole message. Lines that are no ref change, such as ids of another length, make it fail: it was written
    /// by our own hook, so anything odd is damage.
    pub(super) fn parse(text: &[u8]) -> Result<Message, &'static str> {
        if text.len() > MESSAGE_MAX_BYTES {
            return Err("the message is longer than 16 MiB");
        }
        let text = std::str::from_utf8(text).map_err(|_| "the message is not UTF-8")?;
        let mut lines = text.lines();
        if lines.next() != Some("mainstay-push 1") {
            return Err("the message does not begin with `mainstay-push 1`");
        }
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
        let repo = field("repo").ok_or("the message has no `repo` line")?;
        let delivery = field("delivery").ok_or("the message has no `delivery` line")?;
        if !is_delivery(&delivery) {
            return Err("the delivery id is no short word");
        }
        let actor = field("actor").ok_or("the message has no `actor` line")?;
        let mut changes = Vec::new();
        loop {
            let line = lines.next().ok_or("the message is cut off")?;
            if line == "end" {
                break;
            }
            changes.push(change(line).ok_or("a line is not `OLD NEW REF`")?);
        }
        Ok(Message { repo, delivery, actor: clean_actor(&actor), changes })
    }

    /// The message as text.
    pub(super) fn format(&self) -> String {
        let mut text = format!(
            "mainstay-push 1\nrepo {}\ndelivery {}\nactor {}\n",
            self.repo,
            self.delivery,
            self.actor.as_deref().unwrap_or("")
        );
        for c in &self.changes {
            text.push_str(&format!("{} {} {}\n", c.old, c.new, c.git_ref));
        }
        text.push_str("end\n");
        text
    }
}

/// One line as git gives it to a post-receive hook.
pub(super) fn change(line: &str) -> Option<RefChange> {
    let mut words = line.splitn(3, ' ');
    let old = words.next()?.parse().ok()?;
    let new = words.next()?.parse().ok()?;
    let git_ref = words.next().filter(|r| !r.is_empty())?.to_owned();
    Some(RefChange { git_ref, old, new })
}

/// A delivery id is a short word; forges use UUIDs and numbers.
pub(super) fn is_delivery(text: &str) -> bool {
    (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// A name fit for storing and showing; `None` when nothing is left of it.
pub(super) fn clean_actor(text: &str) -> Option<String> {
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).take(ACTOR_MAX_CHARS).collect();
    (!clean.is_empty()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_comes_back_as_it_was() {
        let message = Message {
            repo: "shop".into(),
            delivery: "1.2-3".into(),
            actor: Some("Ana Ávila".into()),
            changes: vec![change(&format!("{} {} refs/heads/a b", "0".repeat(40), "1".repeat(40))).unwrap()],
        };
        assert_eq!(Message::parse(message.format().as_bytes()).unwrap(), message);
        let text = message.format();
        for end in 0..text.len() - 1 {
            if text.is_char_boundary(end) && &text[..end] != text.trim_end() {
                assert!(Message::parse(&text.as_bytes()[..end]).is_err(), "cut at {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "mainstay-push 1\nrepo .*\ndelivery .*\nactor .*\n.*\nend\n") {
            let _ = Message::parse(&bytes);
            let _ = Message::parse(text.as_bytes());
        }
    }
}
