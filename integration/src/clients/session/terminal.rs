//! A program in a terminal of its own.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};

use super::line::Line;

nix::ioctl_write_ptr_bad!(
    /// ioctl_tty(2).
    set_size,
    libc::TIOCSWINSZ,
    Winsize
);

fn size([rows, columns]: [u16; 2]) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// The terminal and the program.
pub(super) struct Terminal {
    master: File,
    program: Child,
}

impl Terminal {
    /// Starts a program in a terminal of some rows and columns.
    pub(super) fn start(mut command: Command, rows_columns: [u16; 2]) -> Self {
        let OpenptyResult { master, slave } =
            openpty(Some(&size(rows_columns)), None).expect("a terminal");
        for fd in [&master, &slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("close it on exec");
        }
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("never wait in a read");
        let end = || Stdio::from(slave.try_clone().expect("duplicate"));
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: only two system calls happen between fork and exec, on the terminal that is stdin by then.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                let taken = libc::ioctl(0, libc::TIOCSCTTY, 0);
                nix::errno::Errno::result(taken)?;
                Ok(())
            });
        }
        Self {
            master: File::from(master),
            program: command.spawn().expect("start the client"),
        }
    }
}

impl Line for Terminal {
    fn types(&mut self, text: &[u8]) {
        self.master.write_all(text).expect("type");
    }

    fn resize(&mut self, rows_columns: [u16; 2]) {
        // SAFETY: the descriptor is a terminal and the size outlives the call.
        let resized = unsafe { set_size(self.master.as_raw_fd(), &size(rows_columns)) };
        resized.expect("turn the window");
    }

    fn read(&mut self) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        loop {
            match self.master.read(&mut buffer) {
                Ok(length @ 1..) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // EIO is the end of who had it.
                _ => return text,
            }
        }
    }

    fn code(&mut self) -> Option<i32> {
        let status = self.program.try_wait().expect("wait")?;
        Some(status.code().expect("no signal ends the client"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
