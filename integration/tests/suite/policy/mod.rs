//! What a container asked for and was given, and what the host sees of it.

pub(crate) mod asked;
pub(crate) mod explain;
pub(crate) mod old;
pub(crate) mod options;
pub(crate) mod outside;
pub(crate) mod posture;
pub(crate) mod profile;
pub(crate) mod sidecars;

integration::room![
    options, asked, explain, posture, outside, profile, old, sidecars
];
