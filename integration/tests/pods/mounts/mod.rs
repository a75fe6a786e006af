//! What the containers of a pod see of files: volumes, images, small files.

pub(crate) mod images;
pub(crate) mod small;
pub(crate) mod volumes;

integration::room![volumes, images, small];
