//! apt with state of its own, so that it needs no root, leaves the system's lists alone, and finds Debian bookworm from
//! any Debian or Ubuntu.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::process;

/// The release whose kernels and programs are used.
const RELEASE: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt that keeps its state in a directory of ours.
pub struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    /// Sets up `dir`. On the release itself the system's sources are used, with whatever mirror they name.
    pub fn open(dir: &Path) -> Result<Apt, Error> {
        for sub in ["lists/partial", "archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).map_err(Error::file(&sub))?;
        }
        let status = dir.join("status");
        fs::write(&status, "").map_err(Error::file(&status))?;
        let at = |name: &str| dir.join(name).display().to_string();
        let mut options = vec![
            format!("Dir::State::Lists={}", at("lists")),
            format!("Dir::State::Status={}", at("status")),
            format!("Dir::Cache={}", dir.display()),
            format!("Dir::Cache::Archives={}", at("archives")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Architectures=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        // root downloads as itself: the user that apt would change to may not write here.
        options.push("APT::Sandbox::User=root".to_owned());
        if !host_is(RELEASE) {
            let keyring = keyring(dir)?;
            let sources = dir.join("sources.list");
            let line = |archive: &str, suite: &str| {
                format!("deb [signed-by={}] http://deb.debian.org/{archive} {suite} main\n", keyring.display())
            };
            let text = line("debian", RELEASE) + &line("debian-security", &format!("{RELEASE}-security"));
            fs::write(&sources, text).map_err(Error::file(&sources))?;
            options.push(format!("Dir::Etc::SourceList={}", sources.display()));
            options.push("Dir::Etc::SourceParts=/dev/null".to_owned());
        }
        Ok(Apt { dir: dir.to_owned(), options })
    }

    fn command(&self, program: &str, words: &[&str]) -> std::process::Command {
        let mut command = process::command(&self.dir, program, ["-q"]);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.args(words).env("LC_ALL", "C");
        command
    }

    /// Fetches the package lists.
    pub fn update(&self) -> Result<(), Error> {
        process::run(self.command("apt-get", &["update"]))
    }

    /// The package that `meta` depends on, whose name begins with `prefix`.
    pub fn dependency(&self, meta: &str, prefix: &'static str) -> Result<String, Error> {
        let text = process::text(self.command("apt-cache", &["show", "--no-all-versions", meta]))?;
        text.lines()
            .filter_map(|line| line.strip_prefix("Depends:"))
            .flat_map(|names| names.split([',', '|']))
            .filter_map(|name| name.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| Error::Output { program: "apt-cache show", what: format!("{meta} depends on no {prefix}") })
    }

    /// Downloads packages; apt checks them against the archive's signature.
    pub fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>, Error> {
        download(&self.dir, self.command("apt-get", &["download"]), packages)
    }
}

fn download(dir: &Path, mut apt: std::process::Command, packages: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let target = dir.join("downloaded");
    if target.exists() {
        fs::remove_dir_all(&target).map_err(Error::file(&target))?;
    }
    fs::create_dir_all(&target).map_err(Error::file(&target))?;
    apt.args(packages).current_dir(&target);
    process::run(apt)?;
    let listing = fs::read_dir(&target).map_err(Error::file(&target))?;
    let mut archives: Vec<PathBuf> = listing.filter_map(Result::ok).map(|entry| entry.path()).collect();
    archives.sort();
    Ok(archives)
}

fn host_is(release: &str) -> bool {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    text.lines().any(|line| line.strip_prefix("VERSION_CODENAME=") == Some(release))
}

/// Debian's keys. Where they are not installed, the package that holds them comes from the system's own archive, which
/// vouches for it.
fn keyring(dir: &Path) -> Result<PathBuf, Error> {
    if Path::new(KEYRING).exists() {
        return Ok(KEYRING.into());
    }
    let apt = process::command(dir, "apt-get", ["-q", "-o", "APT::Sandbox::User=root", "download"]);
    let root = dir.join("keyring");
    super::unpack(&download(dir, apt, &["debian-archive-keyring"])?, &root, &[])?;
    let keyring = root.join(KEYRING.trim_start_matches('/'));
    if keyring.exists() { Ok(keyring) } else { Err(Error::NotWhatItSays { path: keyring, expected: "there" }) }
}
