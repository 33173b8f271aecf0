//! PID 1 of the save and restore kernels.

fn main() {
    dormouse::pid1::main()
}
