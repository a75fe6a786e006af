//! What a shell in a terminal does with the keys that a person types, and with its window.

use std::time::Duration;

use super::person::Session;

/// Says when it has begun and when it goes on, in words that are not in the line itself: that is echoed.
const PROGRAM: &str = "sh -c 'trap \"echo on\"\"wards\" CONT; trap \"stty size\" WINCH; \
    echo be\"\"gun; while :; do sleep 0.1; done'";
/// Says what it has read once it has been interrupted as well. A `runsc exec` that stays hands a signal on when it comes to it, and
/// tells nobody: what is typed after the key may be read before. A reader that ended then would leave the signal to the shell, which
/// drops the line that is typed to it, and takes the terminal as its editor had set it for what the next program is to have.
const READER: &str = "sh -c 'trap n=1 INT; echo be\"\"gun; while ! read line; do :; done; \
    while [ -z \"$n\" ]; do sleep 0.1; done; echo \"[$line]\"'";

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
