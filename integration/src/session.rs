//! A person at a terminal: `ctr` in a real one, or what `kubectl` sends for one.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest as _;
use tungstenite::http::HeaderValue;
use tungstenite::{Message, WebSocket};

use crate::bed::{SOCKET, tool};
use crate::client::NAMESPACE;
use crate::patience::patience;

nix::ioctl_write_ptr_bad!(
    /// ioctl_tty(2).
    set_size,
    libc::TIOCSWINSZ,
    Winsize
);

/// How long something may take to appear.
const LIMIT: Duration = Duration::from_secs(15);
/// The streaming protocol of CRI by websocket; its channels are the first byte of each message
/// (`k8s.io/cri-streaming/pkg/streaming/remotecommand`).
const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

fn size([rows, columns]: [u16; 2]) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// What a person types to and reads from.
trait Line: Send {
    fn types(&mut self, text: &[u8]);
    fn resize(&mut self, rows_columns: [u16; 2]);
    /// What has come.
    fn read(&mut self) -> String;
    /// The exit code, once it has ended.
    fn code(&mut self) -> Option<i32>;
}

/// A person's session. Dropped, its client goes.
#[allow(missing_debug_implementations, reason = "a line is one of several")]
pub struct Session {
    line: Box<dyn Line>,
    said: String,
    seen: usize,
}

impl Session {
    /// Starts a program in a terminal of some rows and columns.
    ///
    /// # Panics
    /// When that is not possible.
    #[must_use]
    pub fn start(command: Command, rows_columns: [u16; 2]) -> Self {
        Self::on(Terminal::start(command, rows_columns))
    }

    /// `ctr` in a terminal.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn ctr(args: &[&str], rows_columns: [u16; 2]) -> Self {
        let mut command = Command::new(tool("ctr").expect("ctr"));
        command
            .args(["--address", SOCKET, "--namespace", NAMESPACE])
            .args(args)
            .env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true");
        Self::start(command, rows_columns)
    }

    /// What an answer to CRI's Exec or Attach names, by websocket.
    ///
    /// # Panics
    /// When it cannot be reached.
    #[must_use]
    pub fn cri(url: &str, rows_columns: [u16; 2]) -> Self {
        let mut line = Channels::open(url);
        line.resize(rows_columns);
        Self::on(line)
    }

    fn on(line: impl Line + 'static) -> Self {
        Self {
            line: Box::new(line),
            said: String::new(),
            seen: 0,
        }
    }

    /// Types.
    ///
    /// # Panics
    /// When nobody is there.
    pub fn types(&mut self, text: &str) {
        self.line.types(text.as_bytes());
    }

    /// Turns the window.
    ///
    /// # Panics
    /// When that is not possible.
    pub fn resize(&mut self, rows_columns: [u16; 2]) {
        self.line.resize(rows_columns);
    }

    /// Waits until a text has appeared after what was seen last.
    ///
    /// # Panics
    /// When it does not.
    pub async fn sees(&mut self, text: &str) {
        let deadline = Instant::now() + patience(LIMIT);
        loop {
            self.said.push_str(&self.line.read());
            if let Some(found) = self.said[self.seen..].find(text) {
                self.seen += found + text.len();
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{text:?} does not appear in {:?}, after {:?}",
                &self.said[self.seen..],
                &self.said[..self.seen]
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether a text has appeared at any time.
    #[must_use]
    pub fn has_seen(&self, text: &str) -> bool {
        self.said.contains(text)
    }

    /// Waits for the end, and returns the exit code.
    ///
    /// # Panics
    /// When it does not end.
    pub async fn end(mut self) -> i32 {
        let deadline = Instant::now() + patience(LIMIT);
        loop {
            self.said.push_str(&self.line.read());
            if let Some(code) = self.line.code() {
                return code;
            }
            assert!(
                Instant::now() < deadline,
                "the client does not end: {:?}",
                self.said
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A program in a terminal of its own.
struct Terminal {
    master: File,
    program: Child,
}

impl Terminal {
    fn start(mut command: Command, rows_columns: [u16; 2]) -> Self {
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

/// A connection to the kubelet's streaming server, which is containerd's here.
struct Channels {
    socket: WebSocket<TcpStream>,
    code: Option<i32>,
}

impl Channels {
    fn open(url: &str) -> Self {
        let url = url.replacen("http://", "ws://", 1);
        let mut request = url.as_str().into_client_request().expect("a URL");
        let mut header = |name, value| {
            let value = HeaderValue::from_static(value);
            request.headers_mut().insert(name, value);
        };
        header("Sec-WebSocket-Protocol", PROTOCOL);
        // Go's server wants one.
        header("Origin", "http://localhost");
        let uri = request.uri();
        let (host, port) = (uri.host().expect("a host"), uri.port_u16().expect("a port"));
        let stream = TcpStream::connect((host, port)).expect("connect");
        let (socket, _) = tungstenite::client(request, stream).expect("speak the protocol");
        socket.get_ref().set_nonblocking(true).expect("never wait");
        Self { socket, code: None }
    }

    fn send(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        let sent = self.socket.send(Message::Binary(message.into()));
        sent.expect("send");
    }

    /// What the error channel says of the end (`metav1.Status`).
    fn end_of(status: &[u8]) -> i32 {
        let status: Value = serde_json::from_slice(status).expect("a status");
        if status["status"] == "Success" {
            return 0;
        }
        let code = status["details"]["causes"][0]["message"].as_str();
        let code = code.and_then(|code| code.parse().ok());
        code.unwrap_or_else(|| panic!("no exit code: {status}"))
    }
}

impl Line for Channels {
    fn types(&mut self, text: &[u8]) {
        self.send(STDIN, text);
    }

    fn resize(&mut self, [rows, columns]: [u16; 2]) {
        let size = json!({ "Width": columns, "Height": rows }).to_string();
        self.send(RESIZE, size.as_bytes());
    }

    fn read(&mut self) -> String {
        let mut text = String::new();
        while let Ok(message) = self.socket.read() {
            match message.into_data().split_first() {
                Some((&STDOUT, data)) => text.push_str(&String::from_utf8_lossy(data)),
                Some((&ERROR, status)) if self.code.is_none() => {
                    self.code = Some(Self::end_of(status));
                }
                _ => {}
            }
        }
        text
    }

    fn code(&mut self) -> Option<i32> {
        self.code
    }
}

/// Says when it has begun and when it goes on, in words that are not in the line itself: that is echoed.
const PROGRAM: &str = "sh -c 'trap \"echo on\"\"wards\" CONT; trap \"stty size\" WINCH; \
    echo be\"\"gun; while :; do sleep 0.1; done'";
/// Says what it has read, however often it is interrupted.
const READER: &str = "sh -c 'trap : INT; echo be\"\"gun; while ! read line; do :; done; \
    echo \"[$line]\"'";

/// A shell in a terminal obeys its keys and its window, from its prompt to its end with code 7; returns what its client is told
/// of that.
///
/// # Panics
/// When it does not.
pub async fn obeys(mut session: Session) -> i32 {
    session.types("set +o vi; echo he''re\n");
    session.sees("here\r").await;
    prompted(&mut session).await;
    for (key, shown, code) in [("\x03", "^C", 130), ("\x1c", "^\\", 131)] {
        // busybox's shell takes no SIGQUIT. What says that it has begun is in front by then.
        begin(&mut session, "sh -c 'echo be\"\"gun; exec sleep 1000'").await;
        session.types(key);
        session.sees(shown).await;
        ended(&mut session, code).await;
    }

    begin(&mut session, PROGRAM).await;
    session.types("\x1a");
    session.sees("Stopped").await;
    prompted(&mut session).await;
    session.types("jobs\n");
    session.sees("Stopped").await;
    prompted(&mut session).await;
    session.types("fg\n");
    session.sees("onwards").await;
    session.resize([41, 99]);
    session.sees("41 99").await;
    session.types("\x03");
    ended(&mut session, 130).await;

    // A program that fills the screen draws it anew, to its last line.
    session.types("vi\n");
    session.sees("\x1b[41;1H").await;
    session.resize([29, 77]);
    session.sees("\x1b[29;1H").await;
    session.types(":q!\n");
    prompted(&mut session).await;

    begin(&mut session, &format!("stty intr ^X; {PROGRAM}")).await;
    session.types("\x18");
    session.sees("^X").await;
    ended(&mut session, 130).await;

    // What was typed before a key is lost.
    begin(&mut session, &format!("stty intr ^C; {READER}")).await;
    session.types("lost\x03kept\n");
    session.sees("[kept]").await;
    prompted(&mut session).await;

    // The letter that is typed may be that of another key.
    let begins = "stty iuclc intr x; sh -c 'echo be\"\"gun; exec sleep 1000'";
    begin(&mut session, begins).await;
    session.types("X");
    ended(&mut session, 130).await;
    session.types("stty -iuclc intr ^C\n");
    prompted(&mut session).await;

    // Neither a quoted key nor one of a program that takes keys itself is more than a byte.
    begin(&mut session, "echo be''gun; head -n 1 | od -An -tx1").await;
    session.types("\x16\x03\n");
    session.sees("03 0a").await;
    prompted(&mut session).await;
    let raw = "stty -isig -icanon; echo be''gun; head -c 3 | od -An -tx1; stty isig icanon";
    begin(&mut session, raw).await;
    session.types("\x03\x1c\x1a");
    session.sees("03 1c 1a").await;
    prompted(&mut session).await;

    session.types("exit 7\n");
    session.end().await
}

/// What is typed ahead of a key is lost as well where nobody has read it yet: rounds of that, in a shell.
///
/// # Panics
/// When a line is not lost.
pub async fn drops(mut session: Session, rounds: usize) {
    session.types("set +o vi; echo he''re\n");
    session.sees("here\r").await;
    prompted(&mut session).await;
    for round in 0..rounds {
        begin(&mut session, "sh -c 'echo be\"\"gun; exec sleep 1000'").await;
        session.types("echo A$((1+1))HEAD\n");
        session.sees("HEAD").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        session.types("\x03");
        session.sees("^C").await;
        ended(&mut session, 130).await;
        assert!(!session.has_seen("A2HEAD"), "in round {round}");
    }
    session.types("exit 7\n");
    assert_eq!(session.end().await, 7);
}

async fn begin(session: &mut Session, line: &str) {
    session.types(&format!("{line}\n"));
    session.sees("begun").await;
}

async fn ended(session: &mut Session, code: i32) {
    prompted(session).await;
    session.types("echo got-$?\n");
    session.sees(&format!("got-{code}")).await;
    prompted(session).await;
}

/// What is typed before the shell edits its line may be cut in two: the terminal changes its mode then.
async fn prompted(session: &mut Session) {
    session.sees("# ").await;
}
