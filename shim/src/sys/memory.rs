//! Gives memory back. A create reads specs, policies and profiles, and an idle shim keeps none of them.

use std::ops::Range;
use std::time::Duration;

/// By then the request is answered and what it was made of is gone.
const SOON: Duration = Duration::from_secs(1);

/// Returns to the kernel a little later what is free of the heap, and pages of code: starting and a create run much that is
/// not run again.
pub(crate) fn give_back_soon() {
    tokio::spawn(async {
        tokio::time::sleep(SOON).await;
        give_back();
        give_back_code();
    });
}

/// Lets go of every page of code. The kernel keeps the file's pages while it has room, and maps those that are run again.
fn give_back_code() {
    let maps = std::fs::read("/proc/self/maps").unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    for range in maps.lines().filter_map(code_of_a_file) {
        let length = range.end.saturating_sub(range.start);
        // SAFETY: the range is mapped, from a file, and never written to, so that what is dropped is read again from there.
        unsafe {
            libc::madvise(
                std::ptr::without_provenance_mut(range.start),
                length,
                libc::MADV_DONTNEED,
            );
        }
    }
}

/// The range of a line of /proc/self/maps (proc_pid_maps(5)) that is code of a file: what is only read may have been relocated.
fn code_of_a_file(line: &str) -> Option<Range<usize>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    if fields.next()? != "r-xp" || !fields.nth(3)?.starts_with('/') {
        return None;
    }
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

/// Returns what is free of the heap to the kernel. The C library keeps it otherwise, for as long as the shim lives.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time, from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go() {
        let code = "55e0c9a00000-55e0c9c00000 r-xp 00100000 fe:00 1234   /usr/bin/shim";
        assert_eq!(
            code_of_a_file(code),
            Some(0x55e0_c9a0_0000..0x55e0_c9c0_0000)
        );
        for other in [
            "55e0c9a00000-55e0c9c00000 r--p 00000000 fe:00 1234   /usr/bin/shim",
            "55e0c9a00000-55e0c9c00000 rwxp 00000000 fe:00 1234   /usr/bin/shim",
            "7ffd1a5f2000-7ffd1a5f4000 r-xp 00000000 00:00 0      [vdso]",
            "7ffd1a5f2000-7ffd1a5f4000 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(code_of_a_file(other), None, "{other}");
        }
        // This goes on to run.
        give_back_code();
    }
}
