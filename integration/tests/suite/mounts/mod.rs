//! Files: what is bound, what an image brings, and how much of it there may be.

pub(crate) mod binds;
pub(crate) mod files;
pub(crate) mod images;
pub(crate) mod places;

integration::room![binds, places, images, files];
