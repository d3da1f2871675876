//! The list: which packages, for which tests.

/// A Debian kernel.
pub struct Kernel {
    /// Its version, as tests name it.
    pub name: &'static str,
    /// The package that depends on the newest build of it.
    pub meta: &'static str,
    /// Its place in the cache, and that of the modules that devices need.
    pub files: [&'static str; 2],
}

/// Something guest tests need.
pub enum Need {
    /// A kernel.
    Kernel(Kernel),
    /// Programs with the libraries they load, all unpacked over one directory.
    Programs {
        /// What for, in words.
        what: &'static str,
        /// The packages.
        packages: &'static [&'static str],
        /// What shows that they are there.
        files: &'static [&'static str],
    },
}

/// Everything.
pub const NEEDS: [Need; 4] = [
    Need::Kernel(Kernel {
        name: "6.1",
        meta: "linux-image-cloud-amd64",
        files: ["vmlinuz-6.1", "kernel-6.1/lib/modules"],
    }),
    Need::Kernel(Kernel {
        name: "6.12",
        meta: "linux-image-6.12-cloud-amd64",
        files: ["vmlinuz-6.12", "kernel-6.12/lib/modules"],
    }),
    Need::Programs {
        what: "busybox (no Linux guest can be tested without it)",
        packages: &["busybox-static"],
        files: &["root/bin/busybox"],
    },
    Need::Programs {
        what: "programs of other packages (they are not compared between guest and host)",
        packages: &[
            // The C library and what several programs share.
            "libc6",
            "libgcc-s1",
            "zlib1g",
            "liblzma5",
            "libzstd1",
            "liblz4-1",
            // perl
            "perl-base",
            "libcrypt1",
            // compressors
            "zstd",
            "xz-utils",
            // cryptography
            "openssl",
            "libssl3",
            // lua
            "lua5.4",
            "liblua5.4-0",
            "libreadline8",
            "libtinfo6",
            // python
            "python3.11-minimal",
            "libpython3.11-minimal",
            "libexpat1",
            // the C compiler proper
            "cpp-12",
            "libgmp10",
            "libmpc3",
            "libmpfr6",
            "libisl23",
        ],
        files: &[
            "root/usr/bin/perl",
            "root/usr/bin/zstd",
            "root/usr/bin/xz",
            "root/usr/bin/openssl",
            "root/usr/bin/lua5.4",
            "root/usr/bin/python3.11",
            "root/usr/lib/gcc/x86_64-linux-gnu/12/cc1",
        ],
    },
];

impl Need {
    /// What shows that it is there.
    pub fn files(&self) -> &[&'static str] {
        match self {
            Need::Kernel(kernel) => &kernel.files,
            Need::Programs { files, .. } => files,
        }
    }

    /// What is lost without it.
    pub fn lost(&self) -> String {
        match self {
            Need::Kernel(kernel) => format!("Linux {} ({}): no test boots it", kernel.name, kernel.meta),
            Need::Programs { what, packages, .. } => format!("{what}: {}", packages.join(" ")),
        }
    }
}
