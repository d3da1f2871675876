//! An initial ramdisk of one file, in the `newc` form of cpio (Linux: Documentation/driver-api/early-userspace/buffer-format).

/// An archive in which `/init` is the executable `program`. The kernel's own ramdisk already holds `/dev/console`.
pub fn with_init(program: &[u8]) -> Vec<u8> {
    let mut archive = Vec::new();
    member(&mut archive, "init", 0o100_755, program);
    member(&mut archive, "TRAILER!!!", 0, &[]);
    archive
}

fn member(archive: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let inode = if mode == 0 { 0 } else { 1 };
    let name_len = name.len() as u32 + 1;
    archive.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    for field in [inode, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name_len, 0] {
        archive.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(content);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}
