//! Promise: environments and messages of `mainstay.yml` are taken as a whole on a reload, told by name, or not at all.

use crate::people::Team;
use std::process::Output;

/// Writes what stands in front of the rest of the settings.
fn write(team: &Team, rest: &str, more: &str) {
    std::fs::write(team.0.dir.path().join("mainstay.yml"), format!("{more}\n{rest}")).unwrap();
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn environment(name: &str, more: &str) -> String {
    format!(
        "  {name}:\n    from: [{{ repo: shop, branches: [main] }}]\n    target: {{ swarm: {{ stack: s.yml, repo: shop }} }}\n{more}"
    )
}

#[test]
fn a_reload_names_what_changed_and_a_mistake_changes_nothing() {
    let team = Team::new();
    let rest = std::fs::read_to_string(team.0.dir.path().join("mainstay.yml")).unwrap();
    let changes = || -> Vec<String> {
        let answer = team.0.cli(&["reload"]);
        answer["changes"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_owned()).collect()
    };
    let two = format!("environments:\n{}{}", environment("staging", ""), environment("live", ""));
    write(&team, &rest, &two);
    assert_eq!(changes(), ["live is an environment now", "staging is an environment now"]);
    assert!(changes().is_empty());

    // The people that the policy names are not there: told with the place, and nothing is taken.
    let wrong = format!("environments:\n{}", environment("live", "    approval: { from: [anna] }\n"));
    write(&team, &rest, &wrong);
    let refused = team.0.try_cli(&["reload"]);
    assert!(!refused.status.success());
    assert!(said(&refused).contains("there is no person or group `anna`"), "{}", said(&refused));
    assert!(said(&refused).contains("did you mean `ana`?"), "{}", said(&refused));

    let value = team.0.dir.path().join("value");
    for (text, changed) in [("one", true), ("two", true), ("two", false)] {
        std::fs::write(&value, text).unwrap();
        let set = team.0.try_cli(&["secrets", "set", "LEVEL", "--from-file", value.to_str().unwrap()]);
        assert!(set.status.success(), "{}", said(&set));
        let file = format!("environments:\n{}", environment("live", "    variables: { LEVEL: '${secret:LEVEL}' }\n"));
        let notify = "notify: { webhooks: { desk: { url: 'http://127.0.0.1:9/x' } } }";
        write(&team, &rest, &format!("{file}\n{notify}"));
        let found = changes();
        // The file may be the same, word for word: the value that it takes counts.
        assert_eq!(found.iter().any(|c| c == "the environment live has other settings"), changed, "{text}: {found:?}");
        let first = text == "one";
        assert_eq!(found.iter().any(|c| c == "people are told in other ways"), first, "{found:?}");
        assert_eq!(found.iter().any(|c| c.starts_with("staging is no longer")), first, "{found:?}");
        assert!(!found.concat().contains("two"), "{found:?}");
    }
    let database = team.database();
    let recorded: String = database.query_row("SELECT group_concat(details) FROM audit", [], |row| row.get(0)).unwrap();
    assert!(recorded.contains("live is an environment now") && !recorded.contains("anna"), "{recorded}");
}
