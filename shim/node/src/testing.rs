//! What unit tests share.

use std::io::{self, Write as _};

/// Reports whether the test runs as root. A test that needs root returns early otherwise; `make check` counts the lines that this
/// writes, past libtest, which would keep them of a test that passes.
pub fn has_root() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        drop(writeln!(io::stderr(), "needs root, not run: {name}"));
    }
    is_root
}
