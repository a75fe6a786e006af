//! Pods and their containers, what they ask for, and who is at their terminals.

pub(crate) mod hostile;
pub(crate) mod life;
pub(crate) mod requests;
pub(crate) mod session;
pub(crate) mod sharing;

integration::room![life, session, sharing, requests, hostile];
