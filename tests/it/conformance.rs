//! The contract of `runtime::Runtime`, as one list of cases that every engine has to pass.
//!
//! `docker` runs on the usual engine; `MAINSTAY_CONFORMANCE_ENGINE=unix:///path` runs the same list on any other
//! Docker-compatible one. `process` runs the cases that hold for plain processes.

mod cases;
mod docker_cases;
mod lab;

macro_rules! on {
    ($kind:ident: $($from:ident::{$($name:ident),* $(,)?})*) => {
        $($(#[test] fn $name() {
            super::lab::run(super::lab::Kind::$kind, stringify!($name), |lab| Box::pin(super::$from::$name(lab)));
        })*)*
    };
}

mod docker {
    on! { Docker:
        cases::{
            a_step_runs_and_its_output_and_exit_code_come_back,
        }
    }
}
