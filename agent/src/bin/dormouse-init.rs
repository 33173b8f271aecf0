//! PID 1 of the save and restore kernels.

fn main() -> std::process::ExitCode {
    dormouse::pid1::main()
}
