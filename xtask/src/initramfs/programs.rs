//! The ramdisk of programs from several packages.
//!
//! A program comes with the libraries that its own dynamic loader names, at the paths they have in their packages: guest
//! and host run the same files, and their output can be compared.

use std::fs;
use std::path::{Path, PathBuf};

use super::{add_file, base};
use crate::error::Error;
use crate::initramfs::cpio::Archive;
use crate::process;
use crate::tree::Tree;

/// The dynamic loader, and where it looks, within the root of the packages.
const LOADER: &str = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];

const PROGRAMS: [&str; 7] = [
    "usr/bin/perl",
    "usr/bin/zstd",
    "usr/bin/xz",
    "usr/bin/openssl",
    "usr/bin/lua5.4",
    "usr/bin/python3.11",
    "usr/lib/gcc/x86_64-linux-gnu/12/cc1",
];

/// Directories that programs read at run time.
const TREES: [&str; 2] = ["usr/lib/python3.11", "usr/lib/x86_64-linux-gnu/perl-base"];

/// The archive.
pub fn ramdisk(tree: &Tree) -> Result<Vec<u8>, Error> {
    let root = tree.cache().join("root");
    let mut archive = base(tree, "programs.sh")?;
    add_file(&mut archive, "input.c", &tree.initramfs_scripts().join("input.c"))?;
    add_file(&mut archive, LOADER, &root.join(LOADER))?;
    for program in PROGRAMS {
        add_file(&mut archive, program, &root.join(program))?;
        for library in libraries(&root, program)? {
            let name = library.strip_prefix(&root).unwrap_or(&library).to_string_lossy().into_owned();
            add_file(&mut archive, &name, &library)?;
        }
    }
    for name in TREES {
        add_tree(&mut archive, &root, name)?;
    }
    Ok(archive.finish())
}

/// What `program` loads, as the loader of its own packages says.
fn libraries(root: &Path, program: &str) -> Result<Vec<PathBuf>, Error> {
    let path = LIBRARIES.map(|dir| root.join(dir).display().to_string()).join(":");
    let loader = root.join(LOADER).display().to_string();
    let program = root.join(program).display().to_string();
    let listing = process::text(process::command(root, &loader, ["--library-path", &path, "--list", &program]))?;
    let mut found = Vec::new();
    for line in listing.lines() {
        if line.contains("not found") {
            return Err(Error::Output { program: "ld.so --list", what: format!("{program}: {}", line.trim()) });
        }
        let path = line.split_once("=> ").map(|(_, path)| path).unwrap_or_default();
        let path = PathBuf::from(path.split(" (").next().unwrap_or_default());
        if path.starts_with(root) && !path.ends_with(LOADER) {
            found.push(path);
        }
    }
    Ok(found)
}

fn add_tree(archive: &mut Archive, root: &Path, name: &str) -> Result<(), Error> {
    let dir = root.join(name);
    for entry in fs::read_dir(&dir).map_err(Error::file(&dir))? {
        let entry = entry.map_err(Error::file(&dir))?;
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(Error::file(entry.path()))?;
        if kind.is_dir() {
            add_tree(archive, root, &name)?;
        } else if kind.is_file() {
            add_file(archive, &name, &entry.path())?;
        }
    }
    Ok(())
}
