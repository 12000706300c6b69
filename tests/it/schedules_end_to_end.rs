//! A pipeline that runs by the clock, through the real daemon: from its file on the default branch to its log.

use crate::hostile::lab::Lab;

const NIGHTLY: &[u8] = b"on: { schedule: [\"0 3 * * * Europe/Paris\"] }\nsteps:\n  tell: { image: busybox, commands: ['echo event $CI_RUN_EVENT on $CI_COMMIT_BRANCH'] }\n";

#[test]
fn a_tick_that_was_missed_while_nobody_ran_is_made_up_for_once() {
    let mut lab = Lab::start("", "");
    let commit = lab.push("main", &[(".mainstay/nightly.yml", NIGHTLY)]);
    let db = || rusqlite::Connection::open(lab.state().join("mainstay.db")).unwrap();
    let due: i64 = lab.wait("the schedule", || {
        db().query_row("SELECT next_due FROM schedules WHERE pipeline = 'nightly'", [], |row| row.get(0)).ok()
    });
    let due = jiff::Timestamp::from_millisecond(due).unwrap();
    let local = due.to_zoned(jiff::tz::TimeZone::get("Europe/Paris").unwrap());
    assert_eq!((local.hour(), local.minute()), (3, 0), "{local}");
    assert!(lab.runs().is_empty(), "a push does not start it");
    // The clock cannot be turned, so the due time is: as if the daemon had been down at three.
    let missed = jiff::Timestamp::now().as_millisecond() - 3_600_000;
    lab.stop();
    let changed = rusqlite::Connection::open(lab.state().join("mainstay.db"))
        .unwrap()
        .execute("UPDATE schedules SET next_due = ?1", [missed])
        .unwrap();
    assert_eq!(changed, 1);
    lab.serve();
    let run = lab.ended(&commit);
    assert_eq!((run["event"].as_str(), run["status"].as_str()), (Some("schedule"), Some("success")), "{run}");
    assert!(lab.logs(&run).contains("event schedule on main"), "{}", lab.logs(&run));
    lab.stop();
    lab.serve();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(lab.runs().len(), 1, "the tick was made up for once");
    // A file that is gone takes its schedule with it.
    std::fs::remove_file(lab.work.join(".mainstay/nightly.yml")).unwrap();
    lab.push("main", &[("README", b"x")]);
    lab.wait("no schedule", || {
        let db = rusqlite::Connection::open(lab.state().join("mainstay.db")).ok()?;
        let count: i64 = db.query_row("SELECT count(*) FROM schedules", [], |row| row.get(0)).ok()?;
        (count == 0).then_some(())
    });
    lab.alive();
}
