//! The testbed: a private containerd, and the folders that containerd, runtimes and tests use.

mod configuration;
mod daemon;
mod handlers;
mod images;
mod testbed;

pub use crate::ground::places::{IMAGE, IMAGE_NAME, PATH_FOLDER, SOCKET, STATE, is_before_2, tool};
pub use configuration::Services;
pub use handlers::HANDLERS;
pub use testbed::Bed;
