//! When the containers of a project are well, and in words why they are not.

use super::{Compose, Member};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How often the engine is asked.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A container without a health check is taken for well when it has run for so long without being started anew.
const SETTLED_AFTER_SECS: i64 = 2;
/// So many starts of one container, and it is not going to be well by itself.
const RESTARTS_MAX: u64 = 3;
/// The last lines shown of a container that is not well.
const LINES_SHOWN: usize = 10;

/// A container of a job that has done its work.
pub(super) fn ended_well(member: &Member) -> bool {
    member.state == "exited" && member.exit_code == 0 && !member.never_ends
}

/// Its state in words.
pub(super) fn words(member: &Member) -> String {
    match (&member.ill, member.well) {
        // The last word of a health check says less than how it ended.
        _ if member.state == "exited" => format!("ended with exit code {}", member.exit_code),
        (Some(said), _) if !said.is_empty() => format!("{}, its health check says: {said}", member.state),
        (Some(_), _) => format!("{}, its health check fails", member.state),
        (None, Some(false)) if member.running => "running, its health check has not held yet".to_owned(),
        _ => member.state.clone(),
    }
}

/// What one look says.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Well,
    /// Not yet, and which container or service is waited for.
    Wait(String),
    /// It will not be well: the container, and why.
    Never(String, String),
}

fn look(members: &[Member], replicas: &BTreeMap<String, u64>, now: jiff::Timestamp) -> Look {
    for member in members {
        let never = |why: String| Look::Never(member.name.clone(), why);
        if member.ill.is_some() {
            return never(words(member));
        }
        if member.state == "exited" && member.exit_code != 0 && !member.never_ends {
            return never(words(member));
        }
        if member.restarts >= RESTARTS_MAX {
            return never(format!("was started anew {} times; {}", member.restarts, words(member)));
        }
    }
    for (service, wanted) in replicas {
        let of_service: Vec<_> = members.iter().filter(|member| member.service == *service).collect();
        if (of_service.len() as u64) < *wanted {
            return Look::Wait(format!("{service} has {} of {wanted} containers", of_service.len()));
        }
        for member in of_service {
            let settled = member.started_at.is_some_and(|at| now.duration_since(at).as_secs() >= SETTLED_AFTER_SECS);
            let well = member.running && member.well.unwrap_or(settled);
            if !well && !ended_well(member) {
                return Look::Wait(format!("{} is {}", member.name, words(member)));
            }
        }
    }
    Look::Well
}

impl Compose {
    /// Waits until every service has its containers and all are well.
    pub(super) async fn wait_well(
        &self,
        project: &str,
        replicas: &BTreeMap<String, u64>,
        until: Instant,
    ) -> Result<(), String> {
        loop {
            let members = self.of_project(project).await.map_err(|error| format!("failed to {error}"))?;
            let (container, why) = match look(&members, replicas, jiff::Timestamp::now()) {
                Look::Well => return Ok(()),
                Look::Wait(why) if Instant::now() >= until => (String::new(), format!("it took too long: {why}")),
                Look::Wait(_) => {
                    tokio::time::sleep(LOOK_EVERY).await;
                    continue;
                }
                Look::Never(container, why) => (container.clone(), format!("{container}: {why}")),
            };
            if container.is_empty() {
                return Err(why);
            }
            let lines = self.parts.docker.last_lines(&container).await.unwrap_or_default();
            let lines = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
            let masker = crate::logs::mask::Masker::new(self.parts.secrets.values().map(|v| v.clone().into_bytes()));
            let shown =
                lines.iter().map(|line| String::from_utf8_lossy(&masker.mask_line(line.as_bytes())).into_owned());
            let shown: Vec<_> = shown.collect();
            return Err(match shown.is_empty() {
                true => why,
                false => format!("{why}; it printed last:\n  {}", shown.join("\n  ")),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(service: &str, state: &str) -> Member {
        Member {
            name: format!("shop-r1_{service}_1"),
            project: "shop-r1".to_owned(),
            service: service.to_owned(),
            image: "busybox".to_owned(),
            command: Vec::new(),
            environment: Vec::new(),
            mounts: BTreeMap::new(),
            ports: BTreeMap::new(),
            running: state == "running",
            state: state.to_owned(),
            exit_code: 0,
            well: None,
            ill: None,
            restarts: 0,
            started_at: Some("2026-03-01T12:00:00Z".parse().unwrap()),
            never_ends: false,
        }
    }

    #[test]
    fn looks_by_table() {
        let at = |second: i64| jiff::Timestamp::new(1_772_366_400 + second, 0).unwrap();
        assert_eq!(at(0), "2026-03-01T12:00:00Z".parse().unwrap());
        let one = BTreeMap::from([("app".to_owned(), 1)]);
        let two = BTreeMap::from([("app".to_owned(), 2)]);
        let running = member("app", "running");
        let is_wait = |look: Look| matches!(look, Look::Wait(_));
        let is_never = |look: Look| matches!(look, Look::Never(..));
        assert!(is_wait(look(&[], &one, at(9))));
        assert!(is_wait(look(std::slice::from_ref(&running), &one, at(1))), "well before it has settled");
        assert_eq!(look(std::slice::from_ref(&running), &one, at(2)), Look::Well);
        assert!(is_wait(look(std::slice::from_ref(&running), &two, at(2))));
        let health = |well| Member { well: Some(well), ..running.clone() };
        assert_eq!(look(&[health(true)], &one, at(0)), Look::Well);
        assert!(is_wait(look(&[health(false)], &one, at(9))));
        let ill = Member { ill: Some("not today".to_owned()), ..health(false) };
        let Look::Never(_, why) = look(&[ill], &one, at(9)) else { panic!("an ill one may become well") };
        assert_eq!(why, "running, its health check says: not today");
        let ended = |exit_code, never_ends| Member { exit_code, never_ends, ..member("app", "exited") };
        assert_eq!(look(&[ended(0, false)], &one, at(0)), Look::Well, "a job that has done its work");
        assert!(is_wait(look(&[ended(0, true)], &one, at(0))));
        assert!(is_never(look(&[ended(3, false)], &one, at(0))));
        assert!(is_wait(look(&[ended(3, true)], &one, at(0))), "it will be started again");
        assert!(is_never(look(&[Member { restarts: 3, ..running }], &one, at(9))));
    }
}
