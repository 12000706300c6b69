//! The contract of `deploy::target::Target`, as one list of cases that every target has to pass.

#![allow(clippy::print_stdout, reason = "how long things took, and how they were cut off, explains a failure")]

mod cases;
mod command;
mod lab;

macro_rules! on {
    ($lab:expr, $from:ident: $($name:ident),* $(,)?) => {
        $(#[test] fn $name() {
            super::lab::run($lab, |lab| Box::pin(super::$from::$name(lab)));
        })*
    };
}

/// Calls `on!` with the list, so that no case is on one target's list and forgotten on another's. `$lab` is a function
/// that makes a laboratory: `|| Box::new(…)`.
macro_rules! every_case {
    ($lab:expr) => {
        on! { $lab, cases:
            what_is_absent_is_made_and_made_again_changes_nothing,
            a_new_release_takes_the_place_of_the_old_and_the_way_back_too,
            a_release_that_crashes_or_is_never_well_leaves_the_old_one_serving,
            an_apply_that_was_cut_off_can_be_repeated,
            another_release_can_be_applied_over_one_that_was_cut_off,
            a_change_made_by_hand_is_put_back_and_removing_leaves_nothing,
        }
    };
}

mod compose;
mod nodes;
mod swarm;
