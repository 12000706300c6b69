//! The contract of `runtime::Runtime`, as one list of cases that every engine has to pass.
//!
//! `docker` runs on the usual engine; `MAINSTAY_CONFORMANCE_ENGINE=unix:///path` runs the same list on any other
//! Docker-compatible one. `process` runs the cases that hold for plain processes.

mod cases;
mod docker_cases;
mod lab;

macro_rules! on {
    ($kind:ident, $from:ident: $($name:ident),* $(,)?) => {
        $(#[test] fn $name() {
            super::lab::run(super::lab::Kind::$kind, stringify!($name), |lab| Box::pin(super::$from::$name(lab)));
        })*
    };
}

/// Calls `on!` with the list, so that no case is on one engine's list and forgotten on another's.
macro_rules! every_case {
    ($kind:ident) => {
        on! { $kind, cases:
            a_step_runs_and_its_output_and_exit_code_come_back,
            commands_stop_at_the_first_failure_and_are_shown_as_written,
            death_by_signal_is_128_and_its_number,
            a_missing_program_is_127_and_a_file_that_is_none_126,
            the_word_brings_environment_and_nothing_comes_from_the_daemon,
            a_word_given_twice_begins_once,
            prepare_may_be_repeated_and_the_process_waits,
            a_new_client_finds_what_an_old_one_left_running,
            stop_lets_a_step_clean_up,
            stop_kills_what_does_not_heed_it,
            a_step_that_only_waits_can_be_stopped,
            logs_go_on_from_every_cursor_with_nothing_lost_or_doubled,
            a_follower_that_comes_back_in_the_middle_misses_nothing,
            long_lines_and_odd_bytes_come_through_unchanged,
            outputs_come_back_in_the_end_mark,
            the_workspace_is_what_was_sent_and_is_shared_by_the_runs_steps,
            a_commit_becomes_a_clone_that_git_likes,
            close_removes_everything_and_may_be_repeated,
            a_kept_workspace_can_be_opened_again,
            a_sweep_keeps_live_runs_and_removes_the_rest,
            a_word_without_a_command_is_refused_with_a_reason,
        }
    };
}

mod docker {
    every_case! { Docker }
    on! { Docker, docker_cases:
        the_engine_is_not_told_what_the_word_says,
        a_word_cut_in_half_and_given_again_arrives_whole,
        steps_side_by_side_may_open_the_same_port_and_reach_each_other_by_name,
        what_is_not_ours_is_not_touched,
        a_missing_image_is_named_with_the_reason,
        an_image_without_a_shell_fails_with_a_clear_word,
        a_step_without_commands_runs_the_images_entrypoint,
        limits_hold,
        root_in_a_step_has_few_rights,
        the_workspace_belongs_to_the_images_user,
        a_full_range_of_networks_is_said_and_other_networks_are_respected,
        a_network_that_was_made_twice_goes_twice,
        a_holder_that_was_lost_comes_back,
        an_engine_that_is_not_there_is_named,
        many_lines_are_read_whole,
    }
}

mod process {
    every_case! { Process }
}
