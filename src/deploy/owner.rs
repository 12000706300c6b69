//! Which process has a lease: a name that tells, on the same machine, whether that process still lives.

use std::fs;

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
