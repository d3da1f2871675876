//! Ramdisks for Linux guests: busybox and scripts, one with programs of other packages besides, and one with the
//! modules of devices.
//!
//! The same inputs give the same bytes: entries are sorted, owned by root and without time.

mod cpio;
mod modules;
mod programs;

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::tree::Tree;
use cpio::Archive;

/// Makes the bytes of a ramdisk.
type Make = fn(&Tree) -> Result<Vec<u8>, Error>;

/// Every ramdisk, by its name in the cache.
pub const ALL: [(&str, Make); 3] =
    [("workload.cpio", workload), ("programs.cpio", programs::ramdisk), ("devices.cpio", modules::ramdisk)];

/// The directories a guest mounts on.
const DIRECTORIES: [&str; 6] = ["bin", "dev", "proc", "sys", "tmp", "usr"];

/// Busybox and what `/init` runs.
fn workload(tree: &Tree) -> Result<Vec<u8>, Error> {
    Ok(base(tree, "workload.sh")?.finish())
}

/// An archive with busybox, `/init` and the script that `/init` runs.
fn base(tree: &Tree, script: &str) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    for name in DIRECTORIES {
        archive.directory(name);
    }
    // The kernel gives it to /init as standard input and output, before /init could mount anything.
    archive.character_device("dev/console", 5, 1);
    add_file(&mut archive, "bin/busybox", &tree.cache().join("root/bin/busybox"))?;
    archive.link("bin/sh", "busybox");
    add_file(&mut archive, "init", &tree.initramfs_scripts().join("init"))?;
    add_file(&mut archive, "script.sh", &tree.initramfs_scripts().join(script))?;
    Ok(archive)
}

fn add_file(archive: &mut Archive, name: &str, from: &Path) -> Result<(), Error> {
    archive.program(name, fs::read(from).map_err(Error::file(from))?);
    Ok(())
}
