//! Whether an event starts a pipeline, and in words why not.

use crate::config::pipeline::Pipeline;
use crate::model::{EventKind, TriggerEvent};

/// Says whether the event starts the pipeline.
///
/// # Errors
/// The reason why not, as a sentence without a full stop.
pub fn matches(pipeline: &Pipeline, event: &TriggerEvent) -> Result<(), String> {
    let on = &pipeline.on;
    if let Some(wanted) = event.pipeline.as_ref().filter(|wanted| **wanted != pipeline.name) {
        return Err(format!("only the pipeline `{wanted}` is meant"));
    }
    if matches!(event.kind, EventKind::Push | EventKind::Tag)
        && let Some(mark) = skip_mark(&event.commit.message)
    {
        return Err(format!("the commit message says `{mark}`"));
    }
    match event.kind {
        EventKind::Push => {
            let push = on.push.as_ref().ok_or("there is no `push` under `on`")?;
            let branch = event.branch().ok_or_else(|| format!("`{}` is not a branch", event.git_ref))?;
            let globs = push.branches.as_ref().ok_or("`on.push` names only tags, and this is a branch")?;
            if globs.matches(branch) {
                Ok(())
            } else {
                Err(format!("the branch `{branch}` does not match `on.push.branches`: {}", globs.words()))
            }
        }
        EventKind::Tag => {
            let push = on.push.as_ref().ok_or("there is no `push` under `on`")?;
            let tag = event.tag().ok_or_else(|| format!("`{}` is not a tag", event.git_ref))?;
            let globs = push.tags.as_ref().ok_or("`on.push` names no `tags`")?;
            if globs.matches(tag) {
                Ok(())
            } else {
                Err(format!("the tag `{tag}` does not match `on.push.tags`: {}", globs.words()))
            }
        }
        EventKind::Schedule if on.schedule.is_empty() => Err("there is no `schedule` under `on`".to_owned()),
        EventKind::Manual if on.manual.is_none() => Err("there is no `manual` under `on`".to_owned()),
        EventKind::Schedule | EventKind::Manual => Ok(()),
    }
}

/// `[skip ci]` or `[ci skip]` in the message, in any case.
fn skip_mark(message: &str) -> Option<&'static str> {
    let message = message.to_ascii_lowercase();
    ["[skip ci]", "[ci skip]"].into_iter().find(|mark| message.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pipeline::parse;
    use crate::model::Oid;
    use crate::model::ids::{PipelineName, RepoName};
    use crate::model::trigger::CommitInfo;

    fn event(kind: EventKind, git_ref: &str, message: &str) -> TriggerEvent {
        TriggerEvent {
            repo: RepoName::new("shop").unwrap(),
            kind,
            git_ref: git_ref.to_owned(),
            commit: CommitInfo {
                sha: Oid::zero(),
                message: message.to_owned(),
                author: String::new(),
                authored_at: jiff::Timestamp::UNIX_EPOCH,
            },
            before: None,
            actor: None,
            pipeline: None,
            inputs: Default::default(),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn verdict(on: &str, kind: EventKind, git_ref: &str) -> Result<(), String> {
        let text = format!("{on}\nsteps: {{a: {{image: x}}}}\n");
        let pipeline = parse(PipelineName::new("build").unwrap(), "build.yml", &text).unwrap();
        matches(&pipeline, &event(kind, git_ref, "work"))
    }

    #[test]
    fn what_starts_what() {
        use EventKind::{Manual, Push, Schedule, Tag};
        let (main, tag) = ("refs/heads/main", "refs/tags/v1");
        let globs = "on: {push: {branches: [main, '!feature/*', 'release/**']}}";
        let table = [
            ("", Push, main, None),
            ("", Manual, main, None),
            ("", Tag, tag, Some("names no `tags`")),
            ("", Schedule, main, Some("no `schedule`")),
            ("on: push", Push, "refs/heads/a/b", None),
            ("on: push", Manual, main, Some("no `manual`")),
            ("on: {manual: }", Push, main, Some("no `push`")),
            (globs, Push, main, None),
            (globs, Push, "refs/heads/release/1/2", None),
            (
                globs,
                Push,
                "refs/heads/feature/x",
                Some("does not match `on.push.branches`: main, release/**, !feature/*"),
            ),
            ("on: {push: {tags: ['v*']}}", Tag, tag, None),
            ("on: {push: {tags: ['v*']}}", Push, main, Some("names only tags")),
            ("on: {push: {tags: {include: ['v*'], exclude: [v1]}}}", Tag, tag, Some("does not match `on.push.tags`")),
            ("on: {push: {branches: [main], tags: ['**']}}", Tag, "refs/tags/a/b", None),
            ("on: {schedule: '0 3 * * *'}", Schedule, main, None),
            ("true: {push: {branches: [main]}}", Push, main, None),
        ];
        for (on, kind, git_ref, why_not) in table {
            match (verdict(on, kind, git_ref), why_not) {
                (Ok(()), None) => {}
                (Err(said), Some(words)) if said.contains(words) => {}
                (got, wanted) => panic!("{on} {kind:?} {git_ref}: {got:?}, wanted {wanted:?}"),
            }
        }
    }

    #[test]
    fn a_commit_may_ask_to_be_skipped_and_a_person_is_not_bound_by_it() {
        let pipeline = parse(PipelineName::new("build").unwrap(), "build.yml", "steps: {a: {image: x}}").unwrap();
        let skip = |kind| matches(&pipeline, &event(kind, "refs/heads/main", "docs\n\n[Skip CI]"));
        assert!(skip(EventKind::Push).unwrap_err().contains("[skip ci]"));
        assert_eq!(skip(EventKind::Manual), Ok(()));
        let mut other = event(EventKind::Manual, "refs/heads/main", "x");
        other.pipeline = Some(PipelineName::new("release").unwrap());
        assert!(matches(&pipeline, &other).unwrap_err().contains("`release`"));
    }
}
