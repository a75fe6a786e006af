//! What a person types to and reads from.

/// A terminal of this machine, or channels to one of another.
pub(super) trait Line: Send {
    /// Types.
    fn types(&mut self, text: &[u8]);
    /// Turns the window.
    fn resize(&mut self, rows_columns: [u16; 2]);
    /// What has come.
    fn read(&mut self) -> String;
    /// The exit code, once it has ended.
    fn code(&mut self) -> Option<i32>;
}
