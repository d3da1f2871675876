//! The guest that runs when no image is given: `guests/builtin`, a kernel that checks the paging under it.

use super::Image;

/// A PVH image. It needs 64 MiB, talks on COM1, and writes 0 to the debug-exit port 0xf4 when all is well.
pub const BUILTIN: Image<'static> =
    Image { name: "builtin", bytes: include_bytes!(concat!(env!("OUT_DIR"), "/builtin.elf")) };
