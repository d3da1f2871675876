//! The guests that need no file: `guests/`, kernels that check, or only use, the memory under them.

use super::Image;

/// A guest that is part of the program.
#[derive(Clone, Copy, Debug)]
pub struct BuiltinGuest {
    /// What `--guest` calls it.
    pub name: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// A PVH image. It needs 64 MiB, talks on COM1, powers off when all is well, and writes what is not to the debug-exit
    /// port 0xf4.
    pub image: Image<'static>,
}

/// Every one of them; the first runs when nothing else is said.
pub const BUILTINS: [BuiltinGuest; 3] = [
    BuiltinGuest {
        name: "paging",
        about: "builds page tables of every kind and checks translation, rights and flushing",
        image: Image { name: "builtin", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/builtin.elf")) },
    },
    BuiltinGuest {
        name: "conversions",
        about: "converts, punches and allocates ranges of every size and verifies them from inside",
        image: Image { name: "conversions", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/conversions.elf")) },
    },
    BuiltinGuest {
        name: "touch",
        about: "writes a word into every page of RAM, by all processors at once",
        image: Image { name: "touch", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/touch.elf")) },
    },
];

/// The guest that runs when no image is given.
pub const BUILTIN: Image<'static> = BUILTINS[0].image;

impl BuiltinGuest {
    /// The guest of this name.
    pub fn named(name: &str) -> Option<&'static BuiltinGuest> {
        BUILTINS.iter().find(|guest| guest.name == name)
    }
}
