//! What a new configuration changes about deploys and messages, in words.

use crate::config::daemon::Daemon;

/// A sentence for each environment that is different, and one for how people are told.
pub(super) fn deploys(old: &Daemon, new: &Daemon) -> Vec<String> {
    let mut changes = Vec::new();
    for name in new.environments.keys().filter(|name| !old.environments.contains_key(*name)) {
        changes.push(format!("{name} is an environment now"));
    }
    for name in old.environments.keys().filter(|name| !new.environments.contains_key(*name)) {
        changes.push(format!("{name} is no longer an environment; what runs there stays"));
    }
    for (name, environment) in &new.environments {
        if old.environments.get(name).is_some_and(|before| before != environment) {
            changes.push(format!("the environment {name} has other settings"));
        }
    }
    if old.trusted_releases != new.trusted_releases {
        changes.push("other keys are trusted with deploy histories".into());
    }
    if old.notify != new.notify {
        changes.push("people are told in other ways".into());
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::daemon::parse;
    use std::path::Path;

    #[test]
    fn each_difference_has_its_sentence() {
        let read = |text: &str, secret: &str| {
            let env = |_: &str| Some(secret.to_owned());
            let text = format!("{text}\nrepos: {{ shop: /x }}\n");
            parse("mainstay.yml", &text, &env, Path::new("/srv")).unwrap_or_else(|e| panic!("{e}"))
        };
        let environment = |name: &str, more: &str| {
            format!(
                "{name}: {{ from: [{{ repo: shop, branches: main }}], target: {{ swarm: {{ stack: s, repo: shop }} }}{more} }}"
            )
        };
        let old =
            format!("environments: {{ {}, {} }}", environment("a", ""), environment("b", ", variables: { X: '${X}' }"));
        let new = format!(
            "environments: {{ {}, {} }}\nnotify: {{ webhooks: {{ w: {{ url: 'http://h' }} }} }}",
            environment("b", ", variables: { X: '${X}' }"),
            environment("c", ", watch: 1s")
        );
        let said = deploys(&read(&old, "1"), &read(&new, "1"));
        let wanted = [
            "c is an environment now",
            "a is no longer an environment; what runs there stays",
            "people are told in other ways",
        ];
        assert_eq!(said, wanted);
        // The file is the same word for word, and the value it takes is another.
        assert_eq!(deploys(&read(&old, "1"), &read(&old, "2")), ["the environment b has other settings"]);
        assert!(deploys(&read(&new, "1"), &read(&new, "1")).is_empty());
        let trusting = format!(
            "{new}\nreleases: {{ trusted: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f] }}"
        );
        let said = deploys(&read(&new, "1"), &read(&trusting, "1"));
        assert_eq!(said, ["other keys are trusted with deploy histories"]);
    }
}
