//! A restore writes where it may, and erases nothing.

use super::*;

fn ready(data: &Path, plan: &str, force: bool) -> Result<Place, RestoreError> {
    take(data, &[], None, plan, "the newest state of shop-db", force, Watched::ByItsFile)
}

fn why(result: Result<Place, RestoreError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn r20_only_an_empty_or_new_folder_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a/b");
    drop(ready(&new, "p", false).unwrap());
    assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, 0o700);
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    drop(ready(&empty, "p", false).unwrap());

    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("family-photos.zip"), "x").unwrap();
    assert!(why(ready(&full, "p", false)).contains("family-photos.zip"));
    fs::write(full.join("PG_VERSION"), "15\n").unwrap();
    assert!(why(ready(&full, "p", false)).contains("PostgreSQL 15"));
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(why(ready(&file, "p", true)).contains("not a folder"));
    assert!(why(ready(Path::new("/"), "p", true)).contains("root"));
}

#[test]
fn r20_behind_a_link_is_where_everything_happens() {
    let dir = tempfile::tempdir().unwrap();
    let (real, link) = (dir.path().join("disk/data"), dir.path().join("data"));
    fs::create_dir_all(&real).unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let place = take(&link, &[], Some((65_534, 65_534)), "p", "it", false, Watched::ByItsFile);
    if nix::unistd::geteuid().is_root() {
        place.unwrap();
        let owner = fs::metadata(&real).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (65_534, 65_534), "it is the server's");
    } else {
        place.unwrap_err();
    }
    fs::remove_file(real.join(STATE)).unwrap();
    fs::write(real.join("precious"), "rows").unwrap();
    let place = ready(&link, "p", true).unwrap();
    let [aside] = &place.moved_aside[..] else { panic!("{:?}", place.moved_aside) };
    assert_eq!(aside.parent(), real.parent());
    assert_eq!(fs::read_to_string(aside.join("precious")).unwrap(), "rows");
    assert!(real.join(STATE).exists() && fs::read_link(&link).unwrap() == real);
}

#[test]
fn r20_force_moves_aside_and_never_erases() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("precious"), "rows").unwrap();
    let place = ready(&data, "p", true).unwrap();
    let aside = place.moved_aside[0].clone();
    assert_eq!(fs::read_to_string(aside.join("precious")).unwrap(), "rows");
    assert!(aside.file_name().unwrap().to_str().unwrap().starts_with("data.before-restore-"));
    assert_eq!(fs::read_dir(&data).unwrap().count(), 1, "its own state only");
}

#[test]
fn r20_beside_a_torn_word_of_a_restore_lies_what_is_somebody_s() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join(STATE), "p\n").unwrap();
    ready(&data, "p", false).unwrap();
    fs::write(data.join(STATE), "p\n").unwrap();
    fs::write(data.join("precious"), "rows").unwrap();
    assert!(why(ready(&data, "p", false)).contains("not empty"));
    assert_eq!(fs::read_to_string(data.join("precious")).unwrap(), "rows");
}

#[test]
fn r20_of_two_restores_one_has_a_tablespace_s_folder() {
    let dir = tempfile::tempdir().unwrap();
    let [mut one, mut two] = ["one", "two"].map(|data| ready(&dir.path().join(data), "p", false).unwrap());
    let space = dir.path().join("space");
    one.tablespace(1, &space, false).unwrap();
    assert!(two.tablespace(1, &space, true).unwrap_err().to_string().contains("another restore"));
    fs::write(space.join("1"), "rows").unwrap();
    assert!(two.tablespace(1, &space, true).unwrap_err().to_string().contains("another restore"));
    assert_eq!(fs::read_to_string(space.join("1")).unwrap(), "rows");
}

#[test]
fn r20_a_running_server_is_left_alone_even_when_forced() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    let mut sleeper = std::process::Command::new("sleep").arg("60").current_dir(&data).spawn().unwrap();
    fs::write(data.join("postmaster.pid"), format!("{}\n{}\n1\n5432\n\n", sleeper.id(), data.display())).unwrap();
    assert!(why(ready(&data, "p", true)).contains("is alive"));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    // Its process is gone, but something answers at its socket.
    let socket = dir.path().join(".s.PGSQL.5432");
    let listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::write(data.join("postmaster.pid"), format!("1\nx\n1\n5432\n{}\n", dir.path().display())).unwrap();
    assert!(why(ready(&data, "p", true)).contains("answers"));
    drop(listening);
    assert!(why(ready(&data, "p", false)).contains("not empty"));
    ready(&data, "p", true).unwrap();
}

#[test]
fn r21_the_same_restore_goes_on_and_another_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut place = ready(&data, "one", false).unwrap();
    place.chunk_done("a/chunk").unwrap();
    assert!(why(ready(&data, "one", false)).contains("now"), "locked by the first");
    // A line that was cut by the end of the process counts for nothing.
    place.state.write_all(b"a/half").unwrap();
    drop(place);
    let place = ready(&data, "one", false).unwrap();
    assert_eq!(place.done.iter().map(String::as_str).collect::<Vec<_>>(), ["a/chunk"]);
    drop(place);
    assert!(why(ready(&data, "two", false)).contains("another restore"));

    // After a restart of the machine nothing is believed that was not synced.
    fs::write(data.join("half-written"), "").unwrap();
    let text = fs::read_to_string(data.join(STATE)).unwrap();
    fs::write(data.join(STATE), text.replace(&boot_id(), "an-earlier-boot")).unwrap();
    let place = ready(&data, "one", false).unwrap();
    assert!(place.done.is_empty() && !data.join("half-written").exists());
    place.finish().unwrap();
    assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
}
