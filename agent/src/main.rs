//! The `yagent` executable; everything is in the library.

fn main() -> std::process::ExitCode {
    yagent::cli::main()
}
