//! The keys of a terminal that raise a signal: what the kernel does with them for the programs of the host, done for those of a
//! sandbox.
//!
//! The terminal of a process in a sandbox is one of the host's, so echo, flush and editing are the host's. A signal is not:
//! it goes to the group in front on the host, and there is none unless a process there has the terminal as its controlling
//! one. Which group is in front inside is known to the sentry alone. So the byte is written to the terminal as it is, and
//! where the terminal's own settings make it a signal, the sentry is asked for that signal. runsc makes the terminal of a
//! sandbox's first container the sandbox's controlling one and passes on what the kernel sends it; there, nothing is asked
//! for.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{
    InputFlags, LocalFlags, SpecialCharacterIndices as Key, Termios, tcgetattr, tcgetsid,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

/// `_POSIX_VDISABLE` of Linux: the character of a key that there is not.
const DISABLED: u8 = 0;
/// How many signals of one terminal may wait. A key waits for its delivery, so all others are changes of the size, of which
/// the last one waiting does for those after it.
const QUEUE: usize = 4;
/// How long a terminal may take to take in a key: longer only where it is full of what nobody reads, so that a real one
/// would hear no key at all.
const TAKEN_LIMIT: Duration = Duration::from_secs(1);
/// The same where a key drops nothing (`stty noflsh`) and something is unread: nothing tells there that it was taken
/// in.
const KEPT_LIMIT: Duration = Duration::from_millis(100);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// A signal of a terminal, for the group that is in front in the sandbox.
#[derive(Debug)]
pub(crate) struct Raised {
    pub(crate) signal: i32,
    /// Dropped once the sentry has it, or it is given up.
    _delivered: oneshot::Sender<()>,
}

/// Where a terminal's signals come from.
#[derive(Debug, Clone)]
pub(crate) struct Signals(mpsc::Sender<Raised>);

impl Signals {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Raised>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), receiver)
    }

    /// Waits until it has been delivered: what is typed after a key is for whoever is left.
    async fn raise(&self, signal: i32) {
        let (delivered, is_delivered) = oneshot::channel();
        let raised = Raised {
            signal,
            _delivered: delivered,
        };
        if self.0.send(raised).await.is_ok() {
            let _ = is_delivered.await;
        }
    }

    /// Tells of a new size.
    pub(crate) fn size_changed(&self) {
        let raised = Raised {
            signal: libc::SIGWINCH,
            _delivered: oneshot::channel().0,
        };
        let _ = self.0.try_send(raised);
    }
}

/// Whether some process of the host has the terminal as its controlling one: then the kernel sends it the signals.
pub(crate) fn is_controlled(master: impl AsFd) -> bool {
    tcgetsid(master).is_ok()
}

/// A terminal that is typed to.
#[derive(Debug)]
pub(crate) struct Keyboard {
    master: AsyncFd<File>,
    signals: Signals,
    /// Whether the next byte is taken as it is.
    quoted: AtomicBool,
}

impl Keyboard {
    /// # Errors
    /// When the terminal cannot be polled.
    pub(crate) fn new(master: OwnedFd, signals: Signals) -> io::Result<Self> {
        Ok(Self {
            master: crate::sys::poll::pollable(master)?,
            signals,
            quoted: AtomicBool::new(false),
        })
    }

    /// Types all of it. The settings are asked for before each write, as a program may change them at any time.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub(crate) async fn write(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            let mut ready = self.master.writable().await?;
            let keys = Keys::of(self.master.get_ref());
            let quoted = self.quoted.load(Ordering::Relaxed);
            let pressed = keys.first(data, quoted);
            let piece = data.get(..pressed.length).unwrap_or(data);
            match ready.try_io(|fd| fd.get_ref().write(piece)) {
                Ok(Ok(written)) => {
                    let (taken, left) = data.split_at_checked(written).unwrap_or((data, &[]));
                    let done = keys.first(taken, quoted);
                    self.quoted.store(done.quoted, Ordering::Relaxed);
                    data = left;
                    if let Some(signal) = done.signal {
                        taken_in(self.master.get_ref(), keys.flushes()).await;
                        self.signals.raise(signal).await;
                    }
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// Waits until the terminal has taken in a key that has been written to it. A worker of the kernel's does that some
/// time after the write (`tty_flip_buffer_push`). Where the signal was faster, the program had ended and the shell had
/// the terminal back: the key was neither shown nor did it flush anything, but was an input of the shell's.
///
/// Who polls the other side waits for the worker, but only where nothing is there to be read (`n_tty_poll` in
/// `drivers/tty/n_tty.c`). So a poll that finds nothing says that the key has been taken in, and one that finds
/// something says nothing. As the key flushes all that was typed before it, and nothing is typed after it, the former
/// comes.
async fn taken_in(master: &File, flushes: bool) {
    let Some(replica) = other_side(master) else {
        return;
    };
    let limit = if flushes { TAKEN_LIMIT } else { KEPT_LIMIT };
    let limit = Instant::now() + limit;
    while has_unread(&replica) && Instant::now() < limit {
        sleep(PAUSE).await;
    }
}

fn other_side(master: &File) -> Option<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    // SAFETY: the descriptor is a terminal's master, and flags are all that the call takes.
    let opened = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) };
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    (opened >= 0).then(|| unsafe { OwnedFd::from_raw_fd(opened) })
}

fn has_unread(replica: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(replica.as_fd(), PollFlags::POLLIN)];
    let told = poll(&mut polled, PollTimeout::ZERO);
    let [replica] = polled;
    let unread = |events: PollFlags| events.contains(PollFlags::POLLIN);
    told.is_ok() && replica.revents().is_some_and(unread)
}

/// What bytes do, as far as the first of them that raises a signal.
#[derive(Debug, PartialEq, Eq)]
struct Pressed {
    /// Up to and with that byte, and those that follow it and are the same: a signal that is pending already is not
    /// made pending twice. All, where none raises one.
    length: usize,
    signal: Option<i32>,
    /// Whether the last one quotes the next.
    quoted: bool,
}

/// What a byte does, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Signal(i32),
    /// It makes the next one a byte as any other.
    Quote,
    /// It is an input, or something else than the above.
    Other,
}

/// The settings of a terminal at a time (`n_tty_receive_char_special` in Linux' `drivers/tty/n_tty.c`). The default is
/// one without keys.
#[derive(Debug)]
struct Keys {
    input: InputFlags,
    local: LocalFlags,
    characters: [u8; libc::NCCS],
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            input: InputFlags::empty(),
            local: LocalFlags::empty(),
            characters: [DISABLED; libc::NCCS],
        }
    }
}

impl Keys {
    /// None, where the kernel does it all, or where the terminal cannot be asked.
    fn of(master: &File) -> Self {
        if is_controlled(master) {
            return Self::default();
        }
        // On the master this tells of the other side (`tty_mode_ioctl`).
        tcgetattr(master)
            .map(|termios| Self::from_termios(&termios))
            .unwrap_or_default()
    }

    fn from_termios(termios: &Termios) -> Self {
        if termios.local_flags.contains(LocalFlags::EXTPROC) {
            return Self::default();
        }
        Self {
            input: termios.input_flags,
            local: termios.local_flags,
            characters: termios.control_chars,
        }
    }

    /// Whether a key that raises a signal drops what was typed before it.
    fn flushes(&self) -> bool {
        !self.local.contains(LocalFlags::NOFLSH)
    }

    fn is(&self, key: Key, byte: u8) -> bool {
        byte != DISABLED && self.characters.get(key as usize) == Some(&byte)
    }

    /// What a byte is before it is looked at.
    fn changed(&self, byte: u8) -> u8 {
        let strips = self.input.contains(InputFlags::ISTRIP);
        let byte = if strips { byte & 0x7f } else { byte };
        let lowers = self.input.contains(InputFlags::IUCLC) && self.extended();
        match byte {
            // The kernel's `tolower` knows Latin-1.
            b'A'..=b'Z' | 0xc0..=0xd6 | 0xd8..=0xde if lowers => byte + 0x20,
            _ => byte,
        }
    }

    fn extended(&self) -> bool {
        self.local.contains(LocalFlags::IEXTEN)
    }

    fn edits(&self) -> bool {
        self.local.contains(LocalFlags::ICANON)
    }

    /// In the kernel's order: the first key that a byte is counts.
    fn does(&self, byte: u8) -> Does {
        let is = |key| self.is(key, byte);
        if self.input.contains(InputFlags::IXON) && (is(Key::VSTART) || is(Key::VSTOP)) {
            return Does::Other;
        }
        let signals = [
            (Key::VINTR, libc::SIGINT),
            (Key::VQUIT, libc::SIGQUIT),
            (Key::VSUSP, libc::SIGTSTP),
        ];
        let signal = signals.into_iter().find(|(key, _)| is(*key));
        match signal.filter(|_| self.local.contains(LocalFlags::ISIG)) {
            Some((_, signal)) => Does::Signal(signal),
            None if self.quotes(byte) => Does::Quote,
            None => Does::Other,
        }
    }

    fn quotes(&self, byte: u8) -> bool {
        let has = |flag| self.input.contains(flag);
        let byte = match byte {
            b'\r' if has(InputFlags::IGNCR) => return false,
            b'\r' if has(InputFlags::ICRNL) => b'\n',
            b'\n' if has(InputFlags::INLCR) => b'\r',
            byte => byte,
        };
        let mut erases = [Key::VERASE, Key::VKILL, Key::VWERASE].into_iter();
        self.edits()
            && self.extended()
            && !erases.any(|key| self.is(key, byte))
            && self.is(Key::VLNEXT, byte)
    }

    fn first(&self, data: &[u8], quoted: bool) -> Pressed {
        // Leaving the mode that has such a key forgets it.
        let mut quoted = quoted && self.edits();
        let typed = |byte: &u8| self.changed(*byte);
        for (before, byte) in data.iter().map(typed).enumerate() {
            if std::mem::take(&mut quoted) {
                continue;
            }
            match self.does(byte) {
                Does::Signal(signal) => {
                    let again = data.iter().skip(before).map(typed);
                    return Pressed {
                        length: before + again.take_while(|next| *next == byte).count(),
                        signal: Some(signal),
                        quoted: false,
                    };
                }
                Does::Quote => quoted = true,
                Does::Other => {}
            }
        }
        Pressed {
            length: data.len(),
            signal: None,
            quoted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::console;
    use nix::sys::termios::{SetArg, tcsetattr};
    use std::io::Read as _;

    /// What the keys are after a program has changed the terminal from its own side.
    fn keys(change: impl FnOnce(&mut Termios)) -> Keys {
        let (master, replica) = console::open().expect("a terminal");
        let mut termios = tcgetattr(&replica).expect("settings");
        change(&mut termios);
        tcsetattr(&replica, SetArg::TCSANOW, &termios).expect("change");
        Keys::of(&File::from(master))
    }

    fn pressed(length: usize, signal: Option<i32>, quoted: bool) -> Pressed {
        Pressed {
            length,
            signal,
            quoted,
        }
    }

    #[test]
    fn keys_are_those_that_the_program_has_set() {
        let usual = keys(|_| {});
        assert_eq!(
            usual.first(b"ab\x03cd", false),
            pressed(3, Some(libc::SIGINT), false)
        );
        assert_eq!(
            usual.first(b"\x1c", false),
            pressed(1, Some(libc::SIGQUIT), false)
        );
        assert_eq!(
            usual.first(b"\x1a\x03", false),
            pressed(1, Some(libc::SIGTSTP), false)
        );
        assert_eq!(
            usual.first(b"a\x03\x03\x03\x1a", false),
            pressed(4, Some(libc::SIGINT), false)
        );
        let moved = keys(|termios| termios.control_chars[Key::VINTR as usize] = 0x18);
        assert_eq!(
            moved.first(b"\x03\x18", false),
            pressed(2, Some(libc::SIGINT), false)
        );
        let disabled = keys(|termios| termios.control_chars[Key::VINTR as usize] = DISABLED);
        assert_eq!(disabled.first(b"\x00\x03", false), pressed(2, None, false));
        let stripping = keys(|termios| termios.input_flags |= InputFlags::ISTRIP);
        assert_eq!(
            stripping.first(b"\x83", false),
            pressed(1, Some(libc::SIGINT), false)
        );
        let raw = keys(|termios| termios.local_flags.remove(LocalFlags::ISIG));
        assert_eq!(raw.first(b"\x03\x1a\x1c", false), pressed(3, None, false));
    }

    #[test]
    fn a_quoted_key_is_a_byte() {
        let usual = keys(|_| {});
        assert_eq!(usual.first(b"\x16\x03x", false), pressed(3, None, false));
        assert_eq!(usual.first(b"x\x16", false), pressed(2, None, true));
        assert_eq!(usual.first(b"\x03", true), pressed(1, None, false));
        assert_eq!(
            usual.first(b"\x16\x16\x03", false),
            pressed(3, Some(libc::SIGINT), false)
        );
        let unedited = keys(|termios| termios.local_flags.remove(LocalFlags::ICANON));
        for (data, quoted) in [(&b"\x16\x03"[..], false), (b"\x03", true)] {
            let length = data.len();
            assert_eq!(
                unedited.first(data, quoted),
                pressed(length, Some(libc::SIGINT), false)
            );
        }
    }

    /// `TIOCPKT_FLUSHREAD`.
    const FLUSHED: u8 = 1;

    /// Whether the kernel makes a signal of what is typed. A signal flushes, and in packet mode the terminal tells of
    /// that. A poll that finds something to read does not wait for the kernel's worker, which may still have a key before it:
    /// so what there is to read is read, until a poll finds nothing.
    fn kernel_signals(termios: &Termios, data: &[u8]) -> bool {
        let (master, replica) = console::open().expect("a terminal");
        tcsetattr(&replica, SetArg::TCSANOW, termios).expect("change");
        let on = 1;
        // SAFETY: the descriptor is a terminal's master, and the number outlives the call.
        let packets = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCPKT, &raw const on) };
        assert_eq!(packets, 0);
        let mut master = File::from(master);
        master.write_all(data).expect("type");
        let reader = other_side(&master).expect("the other side");
        while has_unread(&reader) {
            // A key that is taken in meanwhile drops what there was.
            let _ = nix::unistd::read(&reader, &mut [0; 64]);
        }
        let mut polled = [PollFd::new(master.as_fd(), PollFlags::POLLPRI)];
        poll(&mut polled, PollTimeout::ZERO).expect("poll");
        let [told] = polled;
        if !told.any().expect("known events") {
            return false;
        }
        let mut status = [0; 64];
        let _ = master.read(&mut status).expect("a status");
        status[0] & FLUSHED != 0
    }

    #[test]
    fn keys_are_those_of_the_kernel_under_all_settings_that_matter() {
        let input = [
            InputFlags::ISTRIP,
            InputFlags::IUCLC,
            InputFlags::IXON,
            InputFlags::IGNCR,
            InputFlags::ICRNL,
            InputFlags::INLCR,
            InputFlags::PARMRK,
        ];
        let local = [LocalFlags::ICANON, LocalFlags::IEXTEN, LocalFlags::EXTPROC];
        let (_master, replica) = console::open().expect("a terminal");
        let usual = tcgetattr(&replica).expect("settings");
        let places: &[(Key, u8)] = &[
            (Key::VINTR, b'x'),
            (Key::VINTR, b'X'),
            (Key::VINTR, 0x13),
            (Key::VINTR, 0xe9),
            (Key::VINTR, b'\r'),
            (Key::VLNEXT, b'v'),
            (Key::VLNEXT, b'\n'),
            (Key::VLNEXT, b'\r'),
            (Key::VLNEXT, 0x7f),
            (Key::VLNEXT, 0x15),
            (Key::VLNEXT, 0x17),
            (Key::VLNEXT, DISABLED),
            (Key::VWERASE, 0x16),
            (Key::VSTART, 0x03),
        ];
        let typed: &[u8] = b"xX\x03\x13\x0d\x0a\x16\x7f\x15\x17vV\x83\xc9\xe9\x96\x00";
        let flags = input.len() + local.len();
        // None of them, each, and each with each other.
        let pairs = (0..flags).flat_map(|one| (one..flags).map(move |other| [one, other]));
        for set in std::iter::once([flags; 2]).chain(pairs) {
            let has = |number: usize| set.contains(&number);
            let mut termios = usual.clone();
            for (number, flag) in input.into_iter().enumerate() {
                termios.input_flags.set(flag, has(number));
            }
            for (number, flag) in local.into_iter().enumerate() {
                termios.local_flags.set(flag, has(input.len() + number));
            }
            termios.local_flags.remove(LocalFlags::ECHO);
            for (key, place) in places {
                let mut termios = termios.clone();
                termios.control_chars[*key as usize] = *place;
                let keys = Keys::from_termios(&termios);
                let intr = termios.control_chars[Key::VINTR as usize];
                for byte in typed {
                    // As it is, and before a key.
                    for data in [&[*byte][..], &[*byte, intr]] {
                        assert_eq!(
                            keys.first(data, false).signal.is_some(),
                            kernel_signals(&termios, data),
                            "{data:x?} with {key:?} at {place:#x}, {:?}, {:?}",
                            termios.input_flags,
                            termios.local_flags
                        );
                    }
                }
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_key_is_taken_in_before_its_signal_whatever_is_unread_and_however_busy_the_host_is() {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..cpus * 2 {
            let is_over = std::sync::Arc::clone(&is_over);
            std::thread::spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut left = Vec::new();
        for round in 0..200 {
            let (master, replica) = console::open().expect("a terminal");
            if round % 2 == 1 {
                let mut raw = tcgetattr(&replica).expect("settings");
                raw.local_flags.remove(LocalFlags::ICANON);
                tcsetattr(&replica, SetArg::TCSANOW, &raw).expect("change");
            }
            let (signals, mut raised) = Signals::new();
            let keyboard = Keyboard::new(master, signals).expect("keyboard");
            keyboard.write(b"a line\n").await.expect("written");
            has_unread(&replica);
            let typing = tokio::spawn(async move { keyboard.write(b"\x03").await });
            let key = raised.recv().await.expect("a key");
            left.push(rustix::io::ioctl_fionread(&replica).expect("asked"));
            drop(key);
            typing.await.expect("typed").expect("written");
        }
        is_over.store(true, Ordering::Relaxed);
        let late = left.iter().filter(|bytes| **bytes > 0).count();
        assert_eq!(late, 0, "the line was there still so often");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_typed_after_a_key_waits_for_its_signal() {
        let (master, replica) = console::open().expect("a terminal");
        let (signals, mut raised) = Signals::new();
        let keyboard = Keyboard::new(master, signals).expect("keyboard");
        let typing = tokio::spawn(async move {
            let written = keyboard.write(b"lost\x03kept\n").await;
            written.map(|()| keyboard)
        });
        let first = raised.recv().await.expect("a key");
        assert_eq!(first.signal, libc::SIGINT);
        tokio::task::yield_now().await;
        assert!(!typing.is_finished(), "nobody has been signalled yet");
        drop(first);
        let keyboard = typing.await.expect("typed").expect("written");
        let line = tokio::task::spawn_blocking(move || {
            let mut line = [0; 64];
            let length = File::from(replica).read(&mut line).expect("a line");
            line[..length].to_vec()
        });
        assert_eq!(line.await.expect("read"), b"kept\n");
        drop(keyboard);
    }
}
