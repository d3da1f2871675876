//! The `bifold` command.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    bifold::cli::main().into()
}
