//! The spawner as a program of its own, for tests and measurements of this crate. The product runs itself again.

fn main() -> std::process::ExitCode {
    sandbox::spawner::serve()
}
