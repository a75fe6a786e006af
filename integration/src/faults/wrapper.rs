//! Faults of `runsc`: a script in its place that does something else at a chosen command and is the real one otherwise.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use crate::bed::Bed;
use crate::ground::places::PATH_FOLDER;

/// Puts the real `runsc` back when dropped.
#[derive(Debug)]
pub struct Wrapper {
    place: PathBuf,
    real: PathBuf,
}

/// What a script has before the fault: `$sub` is runsc's command, `$log` the file its log goes to, `$real` runsc itself,
/// `$pidfile` the file that `create` writes the sandbox's pid to, `$bundle` where its config.json is, and `log MESSAGE` logs an
/// error as runsc does.
const HEAD: &str = r#"sub= log= pidfile= bundle= previous=
for word; do
  case $previous in -log|--log) log=$word;; -pid-file|--pid-file) pidfile=$word;; -bundle|--bundle) bundle=$word;; esac
  case $word in
    -log=*|--log=*) log=${word#*=};;
    -pid-file=*|--pid-file=*) pidfile=${word#*=};;
    create|start|pause|resume|delete|kill|state|exec|wait|ps|events|flags|features|help) [ -n "$sub" ] || sub=$word;;
  esac
  previous=$word
done
log() { printf '{"level":"error","msg":"%s","time":"2026-01-01T00:00:00Z"}\n' "$1" >>"${log:-/dev/null}"; }
"#;

impl Wrapper {
    /// At `command`, or several as `create|start`, the shell script `fault` is run instead of runsc.
    ///
    /// # Panics
    /// When there is no runsc.
    #[must_use]
    pub fn at(bed: &Bed, command: &str, fault: &str) -> Self {
        let wrapper = Self::new(bed);
        let real = wrapper.real.display();
        let body = format!(
            "#!/bin/sh\nreal='{real}'\n{HEAD}case $sub in {command})\n{fault}\n;; esac\nexec \"$real\" \"$@\"\n"
        );
        wrapper.write(&body, 0o755);
        wrapper
    }

    /// No `runsc` at all.
    #[must_use]
    pub fn missing(bed: &Bed) -> Self {
        Self::new(bed)
    }

    /// A file that is no program.
    #[must_use]
    pub fn not_executable(bed: &Bed) -> Self {
        let wrapper = Self::new(bed);
        wrapper.write("#!/bin/sh\nexit 0\n", 0o644);
        wrapper
    }

    /// Where the runtime finds it.
    #[must_use]
    pub fn place(&self) -> &Path {
        &self.place
    }

    fn new(bed: &Bed) -> Self {
        let place = Path::new(PATH_FOLDER).join("runsc");
        fs::remove_file(&place).expect("take runsc away");
        Self {
            place,
            real: bed.runsc.clone().expect("runsc"),
        }
    }

    fn write(&self, text: &str, mode: u32) {
        put(&self.place, text, mode);
    }
}

impl Drop for Wrapper {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
        symlink(&self.real, &self.place).expect("put runsc back");
    }
}

/// Puts a script there. It is renamed into place: a file that is open for writing cannot be run.
pub(crate) fn put(place: &Path, text: &str, mode: u32) {
    let name = place.file_name().expect("a name").display();
    let staged = place.with_file_name(format!(".{name}"));
    fs::write(&staged, text).expect("write the script");
    fs::set_permissions(&staged, fs::Permissions::from_mode(mode)).expect("chmod");
    fs::rename(&staged, place).expect("put the script in place");
}
