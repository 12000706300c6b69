//! Which process has a lease: a name that tells, on the same machine, whether that process still lives; and the heart that
//! beats while it does.

use super::Shared;
use crate::model::{DeployId, EnvironmentName};
use crate::store::Taken;
use std::fs;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The name of this process as the owner of leases: `boot/pid/start/random`.
pub fn this_process() -> String {
    let random = getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()));
    let start = started(std::process::id()).unwrap_or_default();
    format!("{}/{}/{start}/{random:016x}", boot(), std::process::id())
}

/// Whether that owner is known to be dead: it ran here since this machine was started, and another process has its number
/// now, or none has. Any other owner may live for all we know; its lease runs out by itself.
pub fn is_dead(owner: &str) -> bool {
    let mut parts = owner.split('/');
    let (Some(on), Some(pid), Some(start)) = (parts.next(), parts.next(), parts.next()) else { return false };
    let (Ok(pid), boot) = (pid.parse::<u32>(), boot()) else { return false };
    // An empty boot id says nothing about where it ran.
    if boot.is_empty() || on != boot {
        return false;
    }
    started(pid).is_none_or(|now| now != start)
}

fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// When a process began, in the kernel's ticks since the machine did. `None` when there is no such process.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in the second field may hold blanks and parentheses: fields are counted after its last one.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    // A zombie holds nothing any more.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// Renews the lease as long as it lives; `lost` turns true when the lease is another's.
pub(super) struct Heart {
    task: tokio::task::JoinHandle<()>,
    pub(super) lost: watch::Receiver<bool>,
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Heart {
    pub(super) fn beat(shared: &Arc<Shared>, name: &EnvironmentName, deploy: DeployId, lease: Duration) -> Heart {
        let (shared, name) = (Arc::clone(shared), name.clone());
        let (tell, lost) = watch::channel(false);
        let task = tokio::spawn(async move {
            loop {
                // Three chances before it runs out.
                tokio::time::sleep(lease / 4).await;
                match shared.store.take_lease(&name, deploy, &shared.owner, lease, |_| false).await {
                    Ok(Taken::Yes) => {}
                    // A full disk: the next beat may do better, and recording anything would fail anyway.
                    Err(error) => tracing::warn!(environment = %name, %error, "failed to renew the lease"),
                    Ok(Taken::No(_) | Taken::Over(_)) => {
                        tell.send_replace(true);
                        return;
                    }
                }
            }
        });
        Heart { task, lost }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_are_not_dead_and_the_dead_are() {
        let me = this_process();
        assert!(!is_dead(&me), "{me}");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let (boot, start) = (boot(), started(child.id()).unwrap());
        let owner = format!("{boot}/{}/{start}/00", child.id());
        assert!(!is_dead(&owner));
        assert!(is_dead(&format!("{boot}/{}/1/00", child.id())), "its number is another's now");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(&owner));
        for other in ["", "x", "another-boot/1/1/1", &format!("{boot}/word/1/1")] {
            assert!(!is_dead(other), "{other}");
        }
    }
}
