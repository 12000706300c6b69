//! When which kind of backup is due.

use super::*;
use crate::backup::catalog::holdings::make::{at, empty, id};
use crate::backup::repository::folder::Folder;
use crate::backup::seal::{Checker, Sealer, new_key_set};
use crate::config::backup::{Around, parse};
use futures_util::FutureExt as _;

fn setup(folder: &std::path::Path, more: &str) -> Setup {
    let store = crate::config::secret::SecretStore::new(folder);
    let around = Around { env: &|_| None, folder, store: &store, repos: None };
    let text = format!("postgres: \"postgres://backup@127.0.0.1:1/?sslmode=disable\"\n{more}\n");
    let source = parse(&"shop-db".parse().unwrap(), "shop-db.yml", &text, &around).unwrap();
    let keys = new_key_set().unwrap();
    Setup {
        source,
        repository: Arc::new(Folder::create(folder.join("repository")).unwrap()),
        sealer: Sealer::new(std::slice::from_ref(&keys.recipient), keys.signing.clone()).unwrap(),
        checker: Checker::new(vec![keys.signing.public()]),
        owner: "a test".into(),
        state: folder.to_owned(),
        programs: crate::backup::logical::Way::Here(None),
    }
}

/// What is due at an hour when the whole backup began at hour 1 and the last one at another. These hours are 13 minutes past
/// those of UTC.
fn due(more: &str, last: i64, now: i64, gap: bool) -> Option<Kind> {
    let dir = tempfile::tempdir().unwrap();
    let setup = setup(dir.path(), more);
    let (view, _) = watch::channel(view::starting(&setup.source));
    let holdings = empty().with_backup(1, 1, 1, 2, None).with_backup(last, 1, 3, 4, (last > 1).then_some(1));
    let last = &holdings.backups[&id(last)].manifest;
    let mut wanted = None;
    let tended = Tended {
        setup: &setup,
        view: &view,
        backup: None,
        tries: Tries::default(),
        answered: None,
        chain_bytes: 0,
        whole_began: Some(at(1)),
        wanted: &mut wanted,
        kind: Kind::Whole,
    };
    let needs_base = gap.then(|| "log was lost".to_owned());
    let status = Status { activity: Activity::Streaming, needs_base, ..Status::default() };
    tended.is_due(Some(last), &status, at(now)).then(|| tended.kind(Some(last), &status, at(now)))
}

#[test]
fn whole_ones_and_incremental_ones_have_schedules_of_their_own() {
    // Every two hours; a whole one each day at noon.
    let both = "schedule: '0 12 * * *'\nincremental: { schedule: '0 */2 * * *' }";
    let noon = (1..26).find(|hour| at(*hour).strftime("%H").to_string() == "12").unwrap();
    let (whole, incremental) = (Some(Kind::Whole), Some(Kind::Incremental));
    assert_eq!(due(both, 1, 1, false), None);
    assert!((2..=3).any(|hour| hour < noon && due(both, 1, hour, false) == incremental), "an even hour came");
    // After the noon it is a whole one, however new the last incremental one is.
    assert_eq!(due(both, noon - 1, noon, false), whole);
    assert_eq!(due(both, 1, 26, false), whole);
    // Without a schedule for whole ones they come from the bound of the chain.
    let only = "incremental: { schedule: '0 */2 * * *' }";
    assert_eq!((due(only, 1, 26, false), due(only, 1, 1, false)), (incremental, None));
    assert_eq!(due("schedule: '0 12 * * *'", 1, 26, false), whole);
    assert_eq!(due("", 1, 26, false), None);
    // Log was lost: what is built on now has nothing missing under it.
    for more in [both, only, ""] {
        assert_eq!(due(more, 1, 1, true), whole);
    }
}

#[test]
fn a_wish_for_a_whole_one_waits_for_an_incremental_one() {
    let dir = tempfile::tempdir().unwrap();
    for (more, running, asked, wanted) in [
        ("incremental: { schedule: '0 * * * *' }", None, Kind::Incremental, Some(Kind::Incremental)),
        ("incremental: { schedule: '0 * * * *' }", Some(Kind::Incremental), Kind::Incremental, None),
        ("incremental: { schedule: '0 * * * *' }", Some(Kind::Incremental), Kind::Whole, Some(Kind::Whole)),
        ("incremental: { schedule: '0 * * * *' }", Some(Kind::Whole), Kind::Incremental, None),
        ("", Some(Kind::Whole), Kind::Whole, None),
        ("", None, Kind::Incremental, Some(Kind::Whole)),
    ] {
        let place = tempfile::tempdir_in(dir.path()).unwrap();
        let setup = setup(place.path(), more);
        let (view, _) = watch::channel(view::starting(&setup.source));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let backup = running.map(|_| runtime.spawn(std::future::pending()));
        let (kind, whole_began) = (running.unwrap_or(Kind::Whole), None);
        let mut held = None;
        let mut tended = Tended {
            setup: &setup,
            view: &view,
            backup,
            tries: Tries::default(),
            answered: None,
            chain_bytes: 0,
            whole_began,
            wanted: &mut held,
            kind,
        };
        tended.wish(Wish::Backup(asked));
        assert_eq!(*tended.wanted, wanted.map(Wish::Backup), "{more:?} {running:?} {asked:?}");
    }
}

/// Cut off at the very moment at which a wish has come: it is in one of three places, and who waits for it hears of each.
#[tokio::test]
async fn a_wish_is_never_lost_when_the_source_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    for more in ["", "kind: logical\ndatabases: all"] {
        let place = tempfile::tempdir_in(dir.path()).unwrap();
        let setup = setup(place.path(), more);
        let opening: Opening = {
            let setup = setup.clone();
            Arc::new(move || std::future::ready(Ok(setup.clone())).boxed())
        };
        for _ in 0..12 {
            let view = watch::Sender::new(view::starting(&setup.source));
            let shared = Shared { view, aside: watch::Sender::new(more.is_empty()), slot: Mutex::default() };
            let (wishes, mut wished) = mpsc::channel(1);
            wishes.try_send(Wish::NewCluster).unwrap();
            let (mut held, stop) = (None, watch::Sender::new(!more.is_empty()));
            let ended = once_over(&opening, &mut wished, &mut held, &shared, stop.subscribe()).await;
            assert!(ended.is_ok(), "{ended:?}");
            let seen = shared.view.borrow().backup.is_some() || shared.view.borrow().failed_backup.is_some();
            assert!(held == Some(Wish::NewCluster) || wished.try_recv().is_ok() || seen, "{more:?}");
        }
    }
}

#[test]
fn of_two_wishes_the_one_that_asks_for_more_is_kept() {
    let all = [Wish::Backup(Kind::Incremental), Wish::Backup(Kind::Whole), Wish::NewCluster];
    assert!(all.is_sorted() && all.map(Wish::kind) == [Kind::Incremental, Kind::Whole, Kind::Whole]);
}
