//! A relay before a sandbox's control socket: it hands on what it is asked, and answers in the sentry's place where it is told to.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// What becomes of one call.
pub(crate) enum Reply {
    /// The sentry answers.
    HandOn,
    /// The sentry is not asked.
    Say(String),
    /// The same, a byte now and then.
    Slowly(String),
    /// The same, with no answer.
    Never,
    /// The same, with a string that does not end for two gigabytes.
    Endless(Arc<Taken>),
    /// The sentry is asked, and its answer replaced; none where there is nothing in its place.
    Instead(Option<String>),
}

/// What was taken of the replies without an end.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) replies: AtomicU64,
    /// Of the one of which most was.
    pub(crate) bytes: AtomicU64,
}

impl From<Option<&'static str>> for Reply {
    fn from(answer: Option<&'static str>) -> Self {
        answer.map_or(Self::HandOn, |text| Self::Say(text.to_owned()))
    }
}

type Answer = dyn Fn(&str) -> Reply + Send + Sync;

/// Stands before a control socket.
pub(crate) struct Relay {
    real: PathBuf,
    answer: Box<Answer>,
}

impl Relay {
    /// `answer` is given the text of each request.
    pub(crate) fn start<R: Into<Reply>>(
        socket: &Path,
        answer: impl Fn(&str) -> R + Send + Sync + 'static,
    ) {
        let real = socket.with_extension("aside");
        fs::rename(socket, &real).expect("move the socket away");
        let listener = UnixListener::bind(socket).expect("take its place");
        let relay = Arc::new(Self {
            real,
            answer: Box::new(move |request| answer(request).into()),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (relay, Ok(stream)) = (Arc::clone(&relay), stream) else {
                    return;
                };
                std::thread::spawn(move || relay.serve(stream));
            }
        });
    }

    /// One connection carries one call.
    fn serve(&self, mut client: UnixStream) -> io::Result<()> {
        let (request, fds) = receive(&client)?;
        let instead = match (self.answer)(&String::from_utf8_lossy(&request)) {
            Reply::HandOn => None,
            Reply::Instead(text) => Some(text),
            Reply::Say(text) => return client.write_all(text.as_bytes()),
            Reply::Slowly(text) => return trickle(&mut client, &text),
            Reply::Never => return until_closed(&mut client),
            Reply::Endless(taken) => return endless(&mut client, &taken),
        };
        let mut sentry = UnixStream::connect(&self.real)?;
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = &rights[..usize::from(!fds.is_empty())];
        let data = [IoSlice::new(&request)];
        sendmsg::<()>(sentry.as_raw_fd(), &data, control, MsgFlags::empty(), None)?;
        for fd in fds {
            nix::unistd::close(fd)?;
        }
        if let Some(text) = instead {
            // Once it has answered, it has done what it was asked.
            receive(&sentry)?;
            drop(sentry);
            return match text {
                Some(text) => client.write_all(text.as_bytes()),
                None => until_closed(&mut client),
            };
        }
        let (mut from, mut to) = (client.try_clone()?, sentry.try_clone()?);
        std::thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            to.shutdown(Shutdown::Both)
        });
        io::copy(&mut sentry, &mut client)?;
        client.shutdown(Shutdown::Both)
    }
}

fn until_closed(client: &mut UnixStream) -> io::Result<()> {
    io::copy(client, &mut io::sink()).map(drop)
}

fn endless(client: &mut UnixStream, taken: &Taken) -> io::Result<()> {
    taken.replies.fetch_add(1, Ordering::Relaxed);
    client.write_all(b"{\"success\":true,\"err\":\"")?;
    let chunk = vec![b'a'; 1 << 16];
    (1..=32768).try_for_each(|chunks| {
        client.write_all(&chunk)?;
        taken.bytes.fetch_max(chunks << 16, Ordering::Relaxed);
        Ok(())
    })
}

pub(crate) fn trickle(client: &mut UnixStream, text: &str) -> io::Result<()> {
    text.bytes().try_for_each(|byte| {
        std::thread::sleep(Duration::from_millis(50));
        client.write_all(&[byte])
    })
}

fn receive(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<RawFd>)> {
    let mut data = vec![0; 65536];
    let mut room = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [IoSliceMut::new(&mut data)];
    let (fd, flags) = (stream.as_raw_fd(), MsgFlags::MSG_CMSG_CLOEXEC);
    let message = recvmsg::<()>(fd, &mut slices, Some(&mut room), flags)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(sent) = control {
            fds.extend(sent);
        }
    }
    let read = message.bytes;
    data.truncate(read);
    Ok((data, fds))
}
