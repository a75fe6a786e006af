//! The node's policy file, for as long as a test needs another one.

use std::fs;

/// Where Bulkhead looks for it.
pub const PATH: &str = "/etc/bulkhead/config.toml";

/// A policy file in place of the node's, which is put back as it was when this is dropped. The tests' `/etc` is their own.
#[derive(Debug)]
pub struct NodePolicy(Option<Vec<u8>>);

impl NodePolicy {
    /// Writes the file.
    ///
    /// # Panics
    /// When that is not possible.
    #[must_use]
    pub fn set(text: &str) -> Self {
        let before = fs::read(PATH).ok();
        fs::create_dir_all("/etc/bulkhead").expect("make the folder");
        fs::write(PATH, text).expect("write the policy");
        Self(before)
    }
}

impl Drop for NodePolicy {
    fn drop(&mut self) {
        let restored = match &self.0 {
            Some(text) => fs::write(PATH, text),
            None => fs::remove_dir_all("/etc/bulkhead"),
        };
        restored.expect("put the policy back");
    }
}
