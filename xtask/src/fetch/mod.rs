//! What guest tests need from Debian: kernels, and the programs that run under them.
//!
//! Packages are named, not pinned: a test of this machine should see the kernel that Debian ships today. Nothing is
//! installed; archives are checked by apt, unpacked into `guests/cache`, and made into ramdisks there. What is there
//! already is not fetched again; delete the directory to get newer packages.

mod apt;
mod needs;

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::initramfs;
use crate::process::{command, run as must};
use crate::tree::Tree;
use apt::Apt;
use needs::{Kernel, NEEDS, Need};

/// What is not in the cache, in words, with what is not tested for want of it.
pub fn missing(tree: &Tree) -> Vec<String> {
    NEEDS.iter().filter(|need| !is_there(tree, need)).map(|need| need.lost()).collect()
}

fn is_there(tree: &Tree, need: &Need) -> bool {
    need.files().iter().all(|file| tree.cache().join(file).exists())
}

/// Fetches what is not there yet. What cannot be fetched does not keep the rest from being fetched.
pub fn run(tree: &Tree) -> Result<(), Error> {
    let cache = tree.cache();
    let wanted: Vec<&Need> = NEEDS.iter().filter(|need| !is_there(tree, need)).collect();
    if wanted.is_empty() {
        eprintln!("fetch: everything is in {}", cache.display());
    } else {
        fs::create_dir_all(&cache).map_err(Error::file(&cache))?;
        fetch(&cache, &wanted)?;
    }
    // Ramdisks are made anew each time: they hold scripts that may have changed.
    for (name, make) in initramfs::ALL {
        let file = cache.join(name);
        match make(tree) {
            Ok(bytes) => fs::write(&file, bytes).map_err(Error::file(&file))?,
            Err(error) => {
                eprintln!("fetch: NO {name}: {error}");
                let _ = fs::remove_file(&file);
            }
        }
    }
    let missing = missing(tree);
    for lost in &missing {
        eprintln!("fetch: MISSING: {lost}");
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::NotFetched(format!("{} of {}", missing.len(), NEEDS.len()))) }
}

fn fetch(cache: &Path, wanted: &[&Need]) -> Result<(), Error> {
    let apt = Apt::open(&cache.join("apt"))?;
    if let Err(error) = apt.update() {
        // Lists of an earlier run may still do.
        eprintln!("fetch: the package lists could not be updated: {error}");
    }
    for need in wanted {
        let outcome = match need {
            Need::Kernel(kernel) => fetch_kernel(&apt, cache, kernel),
            Need::Programs { packages, .. } => fetch_programs(&apt, cache, packages),
        };
        if let Err(error) = outcome {
            eprintln!("fetch: {error}");
        }
    }
    Ok(())
}

fn fetch_kernel(apt: &Apt, cache: &Path, kernel: &Kernel) -> Result<(), Error> {
    let package = apt.dependency(kernel.meta, "linux-image-")?;
    let archives = apt.download(&[&package])?;
    let dir = cache.join(format!("kernel-{}", kernel.name));
    unpack(&archives, &dir, &["./boot", "*/kernel/*virtio*.ko*", "*/kernel/*failover.ko*"])?;
    let boot = dir.join("boot");
    let image = fs::read_dir(&boot)
        .map_err(Error::file(&boot))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
        .ok_or(Error::NotInPackage { package, wanted: "boot/vmlinuz-" })?;
    let bytes = fs::read(&image).map_err(Error::file(&image))?;
    // Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header": the magic number of the setup header.
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Err(Error::NotWhatItSays { path: image, expected: "a bzImage" });
    }
    let [name, _] = kernel.files;
    let file = cache.join(name);
    fs::write(&file, bytes).map_err(Error::file(&file))?;
    eprintln!("fetch: {name} is {}", image.file_name().unwrap_or_default().to_string_lossy());
    Ok(())
}

fn fetch_programs(apt: &Apt, cache: &Path, packages: &[&str]) -> Result<(), Error> {
    let archives = apt.download(packages)?;
    unpack(&archives, &cache.join("root"), &[])
}

/// Unpacks all of `archives`, or only the members that match patterns, over `dir`.
fn unpack(archives: &[std::path::PathBuf], dir: &Path, members: &[&str]) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(Error::file(dir))?;
    for archive in archives {
        let mut tar = command(dir, "tar", ["--extract", "--no-same-owner", "--wildcards", "--file=-"]);
        tar.args(members);
        let mut dpkg = command(dir, "dpkg-deb", ["--fsys-tarfile"]);
        dpkg.arg(archive).stdout(std::process::Stdio::piped());
        let start = |cause| Error::Start { program: "dpkg-deb".to_owned(), cause };
        let mut child = dpkg.spawn().map_err(start)?;
        if let Some(stream) = child.stdout.take() {
            tar.stdin(stream);
        }
        let unpacked = must(tar);
        let status = child.wait().map_err(start)?;
        unpacked?;
        if !status.success() {
            return Err(Error::Failed { command: format!("dpkg-deb --fsys-tarfile {}", archive.display()), status });
        }
    }
    Ok(())
}
