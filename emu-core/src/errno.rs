//! Error numbers of Linux, for errors that a system call would return.
//!
//! [`Errno`] has the names and values of `include/uapi/asm-generic/errno-base.h` and `errno.h`, as far as memory and the
//! KVM interface use them. An error of ours says what was wrong in its own words and gives the number by `errno()`.

use core::fmt;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal $symbol:literal),* $(,)?) => {
        /// See the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Errno {
            $($(#[$doc])* $name = $value,)*
        }

        impl Errno {
            /// Every one, ascending.
            pub const ALL: &[Errno] = &[$(Errno::$name),*];

            /// Its C name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Errno::$name => $symbol,)*
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    Perm = 1 "EPERM",
    /// No such entry: a module is going away.
    NoEnt = 2 "ENOENT",
    /// Interrupted by a signal.
    Intr = 4 "EINTR",
    /// Input or output error.
    Io = 5 "EIO",
    /// No such device or address.
    NxIo = 6 "ENXIO",
    /// Argument list too long.
    TooBig = 7 "E2BIG",
    /// Bad file descriptor.
    BadF = 9 "EBADF",
    /// Try again.
    Again = 11 "EAGAIN",
    /// Out of memory.
    NoMem = 12 "ENOMEM",
    /// Permission denied.
    Acces = 13 "EACCES",
    /// Bad address.
    Fault = 14 "EFAULT",
    /// In use.
    Busy = 16 "EBUSY",
    /// Exists already.
    Exist = 17 "EEXIST",
    /// No such device: the file cannot be mapped.
    NoDev = 19 "ENODEV",
    /// Invalid argument.
    Inval = 22 "EINVAL",
    /// Too many open files in the system.
    NFile = 23 "ENFILE",
    /// Too many open files in the process.
    MFile = 24 "EMFILE",
    /// No such ioctl.
    NoTty = 25 "ENOTTY",
    /// No space left.
    NoSpc = 28 "ENOSPC",
    /// Illegal seek.
    SPipe = 29 "ESPIPE",
    /// Function not implemented.
    NoSys = 38 "ENOSYS",
    /// Operation not supported.
    OpNotSupp = 95 "EOPNOTSUPP",
    /// Memory page has a hardware error.
    HwPoison = 133 "EHWPOISON",
}

impl Errno {
    /// Its positive value.
    pub const fn value(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_names_are_each_their_own() {
        let mut values: Vec<i32> = Errno::ALL.iter().map(|errno| errno.value()).collect();
        values.sort_unstable();
        values.dedup();
        assert_eq!(values.len(), Errno::ALL.len());
        assert_eq!((Errno::HwPoison.value(), Errno::HwPoison.to_string()), (133, "EHWPOISON".into()));
        assert!(Errno::ALL.iter().all(|errno| errno.name().starts_with('E')));
    }
}
