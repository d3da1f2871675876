//! What the program says: `BEGIN name`, `END name checksum nanoseconds`, `DONE`, each on a line.

/// One line of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A kernel starts.
    Begin(String),
    /// It has finished.
    End {
        /// Which.
        name: String,
        /// Its checksum, as printed.
        checksum: String,
        /// Processor time as the program saw it, in nanoseconds.
        nanoseconds: u64,
    },
    /// There is nothing more to come.
    Done,
}

/// Cuts a stream of bytes into markers; lines that are none (a kernel log on the same console) are dropped.
#[derive(Default)]
pub struct Markers {
    line: Vec<u8>,
}

impl Markers {
    /// The markers that end within `bytes`.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Marker> {
        let mut found = Vec::new();
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).into_owned();
            self.line.clear();
            found.extend(parse(line.trim_end()));
        }
        found
    }
}

fn parse(line: &str) -> Option<Marker> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["BEGIN", name] => Some(Marker::Begin(name.to_owned())),
        ["END", name, checksum, ns] => {
            Some(Marker::End { name: name.to_owned(), checksum: checksum.to_owned(), nanoseconds: ns.parse().ok()? })
        }
        ["DONE"] => Some(Marker::Done),
        _ => None,
    }
}
