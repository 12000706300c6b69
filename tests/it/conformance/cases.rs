//! What holds for every engine.

use super::lab::Lab;

pub(super) async fn a_step_runs_and_its_output_and_exit_code_come_back(lab: &Lab) {
    let space = lab.space().await;
    let good = lab.step(&space, "good", &["cat README", "./tool; echo to-stderr >&2"]).await;
    assert_eq!(good.code(), 0, "{}", good.stderr());
    assert_eq!(good.stdout(), "+ cat README\nhello\n+ ./tool; echo to-stderr >&2\ntool\n");
    assert_eq!(good.stderr(), "to-stderr\n");
    let bad = lab.step(&space, "bad", &["echo before", "exit 7", "echo after"]).await;
    assert_eq!((bad.code(), bad.stdout().as_str()), (7, "+ echo before\nbefore\n+ exit 7\n"));
    lab.runtime.close(lab.run, Some(&space), false).await.unwrap();
    assert_eq!(lab.runtime.leftovers().await.unwrap(), []);
}
