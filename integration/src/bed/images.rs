//! Images in containerd, and mounted for containers to share.

use std::fs;
use std::path::{Path, PathBuf};

use crate::clients::client::NAMESPACE;
use crate::clients::ctr;

/// Imports an image into a namespace of containerd.
pub(super) fn import(namespace: &str, image: &str) {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/images");
    let folder = std::env::var_os("BULKHEAD_TEST_IMAGES").map_or(built, PathBuf::from);
    let archive = folder.join(format!("{image}.tar"));
    assert!(
        archive.is_file(),
        "{} is missing: make images",
        archive.display()
    );
    import_archive(namespace, &archive);
}

/// Imports an image from its archive.
pub(super) fn import_archive(namespace: &str, archive: &Path) {
    let archive = archive.display().to_string();
    // The later of two --namespace counts.
    ctr::ok(&[
        "--namespace",
        namespace,
        "image",
        "import",
        "--digests=false",
        &archive,
    ]);
}

/// Mounts an image for containers to share.
pub(super) fn mount(image: &str, place: &Path) {
    fs::create_dir_all(place).expect("make a folder");
    import(NAMESPACE, image);
    let name = format!("bulkhead.test/{image}:latest");
    ctr::ok(&["image", "mount", &name, &place.display().to_string()]);
}
