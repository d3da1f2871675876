//! The ramdisk of a guest with virtio devices: their modules of every kernel, as far as they are not part of it.
//!
//! Modules lie flat in `lib/modules/RELEASE`, decompressed, so that `insmod` alone can load them.

use std::fs;
use std::path::Path;

use super::{Archive, add_file, base};
use crate::error::Error;
use crate::process;
use crate::tree::Tree;

/// The archive.
pub fn ramdisk(tree: &Tree) -> Result<Vec<u8>, Error> {
    let mut archive = base(tree, "devices.sh")?;
    let busybox = tree.cache().join("root/bin/busybox");
    for kernel in ["kernel-6.1", "kernel-6.12"] {
        add_modules(&mut archive, &busybox, &tree.cache().join(kernel).join("lib/modules"), None)?;
    }
    Ok(archive.finish())
}

/// Adds what lies under `dir`: in releases, `release` being known below them.
fn add_modules(archive: &mut Archive, busybox: &Path, dir: &Path, release: Option<&str>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::file(dir))? {
        let entry = entry.map_err(Error::file(dir))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if entry.file_type().map_err(Error::file(&path))?.is_dir() {
            add_modules(archive, busybox, &path, Some(release.unwrap_or(&name)))?;
            continue;
        }
        let target = |name: &str| format!("lib/modules/{}/{name}", release.unwrap_or_default());
        if let Some(plain) = name.strip_suffix(".xz") {
            let file = path.display().to_string();
            let bytes = process::output(process::command(dir, &busybox.display().to_string(), ["xzcat", &file]))?;
            archive.program(&target(plain), bytes);
        } else {
            add_file(archive, &target(&name), &path)?;
        }
    }
    Ok(())
}
