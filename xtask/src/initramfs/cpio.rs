//! The archive format of initial ramdisks (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`,
//! the "newc" variant).

use std::collections::BTreeMap;

/// File types and permissions, as `st_mode` has them.
const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// What is to be in the archive, by name.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    data: Vec<u8>,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), data: Vec<u8>) {
        // A name sorts after its directories', so each directory comes before what it holds.
        for (slash, _) in name.match_indices('/') {
            let parent = Entry { mode: DIRECTORY, device: (0, 0), data: Vec::new() };
            self.entries.entry(name[..slash].to_owned()).or_insert(parent);
        }
        self.entries.insert(name.to_owned(), Entry { mode, device, data });
    }

    /// A directory.
    pub fn directory(&mut self, name: &str) {
        self.add(name, DIRECTORY, (0, 0), Vec::new());
    }

    /// A file that may be executed.
    pub fn program(&mut self, name: &str, data: Vec<u8>) {
        self.add(name, PROGRAM, (0, 0), data);
    }

    /// A symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.add(name, LINK, (0, 0), target.as_bytes().to_vec());
    }

    /// A device node.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.add(name, CHARACTER_DEVICE, (major, minor), Vec::new());
    }

    /// The archive's bytes.
    pub fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (inode, (name, entry)) in (1..).zip(&self.entries) {
            put(&mut bytes, inode, name, entry);
        }
        put(&mut bytes, 0, "TRAILER!!!", &Entry { mode: 0, device: (0, 0), data: Vec::new() });
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, inode: u32, name: &str, entry: &Entry) {
    let (major, minor) = entry.device;
    // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    let size = entry.data.len() as u32;
    let name_size = name.len() as u32 + 1;
    let fields = [inode, entry.mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    bytes.extend(b"070701");
    for field in fields {
        bytes.extend(format!("{field:08X}").bytes());
    }
    bytes.extend(name.bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend(&entry.data);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader written from the format's description alone: names, modes and contents.
    fn read(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            if name == "TRAILER!!!" {
                return found;
            }
            let at = whole - bytes.len();
            let data = (at + 110 + name_size).next_multiple_of(4) - at;
            found.push((name, mode, bytes[data..data + size].to_vec()));
            bytes = &bytes[(at + data + size).next_multiple_of(4) - at..];
        }
    }

    #[test]
    fn what_goes_in_comes_out_sorted() {
        let mut archive = Archive::default();
        archive.program("usr/bin/true", b"12345".to_vec());
        archive.link("bin", "usr/bin");
        archive.character_device("dev/console", 5, 1);
        let entry = |name: &str, mode, data: &[u8]| (name.to_owned(), mode, data.to_vec());
        assert_eq!(
            read(&archive.finish()),
            [
                entry("bin", LINK, b"usr/bin"),
                entry("dev", DIRECTORY, b""),
                entry("dev/console", CHARACTER_DEVICE, b""),
                entry("usr", DIRECTORY, b""),
                entry("usr/bin", DIRECTORY, b""),
                entry("usr/bin/true", PROGRAM, b"12345"),
            ]
        );
    }
}
