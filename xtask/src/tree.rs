//! Where things are in the repository.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// The repository's root.
#[derive(Clone, Debug)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree this program was built from; tasks are started through cargo, from anywhere in it.
    pub fn find() -> Result<Tree, Error> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let root = here.canonicalize().map_err(Error::file(here))?;
        Ok(Tree { root })
    }

    /// The root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Scripts that go into ramdisks.
    pub fn initramfs_scripts(&self) -> PathBuf {
        self.root.join("guests/initramfs")
    }

    /// What was fetched, and what was made of it. Not under version control; may be deleted at any time.
    pub fn cache(&self) -> PathBuf {
        self.root.join("guests/cache")
    }
}
