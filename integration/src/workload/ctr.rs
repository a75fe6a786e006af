//! `ctr run` of the runtime under test.

use std::process::Output;

use crate::bed::Bed;
use crate::clients::ctr;
use crate::ground::places::IMAGE_NAME;

impl Bed {
    fn annotations(&self) -> Vec<String> {
        let annotations = self.runtime.annotations().into_iter();
        annotations
            .map(|(key, value)| format!("--annotation={key}={value}"))
            .collect()
    }

    /// `run` and its flags for `ctr`: the runtime under test, what it needs, and these.
    #[must_use]
    pub fn run_flags(&self, flags: &[&str]) -> Vec<String> {
        let runtime = self.runtime.name.clone();
        let mut all = vec!["run".to_owned(), "--runtime".to_owned(), runtime];
        all.extend(self.annotations());
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        all
    }

    /// `ctr run` of the runtime under test, with what it needs.
    #[must_use]
    pub fn ctr_run<'a>(&'a self, flags: &[&'a str], id: &'a str, args: &[&'a str]) -> Output {
        let flags = self.run_flags(flags);
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.extend([IMAGE_NAME, id]);
        all.extend(args);
        self.ctr(&all)
    }

    /// `ctr run -t` in a terminal of 33 rows and 101 columns, into which `typed` is typed.
    ///
    /// # Panics
    /// When there is no `script`, which makes the terminal (Debian: bsdutils).
    #[must_use]
    pub fn ctr_in_a_terminal(&self, id: &str, program: &str, typed: &str) -> Output {
        let flags = self.run_flags(&["--rm", "-t"]);
        let mut all: Vec<&str> = flags.iter().map(String::as_str).collect();
        all.extend([IMAGE_NAME, id, program]);
        ctr::in_a_terminal(&all, typed)
    }
}
