//! What is asked of a translation.

/// The three ways to use memory. A read-modify-write asks for [`AccessKind::Write`]: on x86 a writable page is readable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Data read.
    Read,
    /// Data write, or a read with intent to write.
    Write,
    /// Instruction fetch.
    Execute,
}

/// On whose authority (Intel SDM vol. 3, "Determination of Access Rights"; APM vol. 2, "Page-Protection Checks").
///
/// The three values are also the three contexts of the fast TLB: moving between them changes what may be used without
/// changing any translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// CPL 3.
    User,
    /// CPL 0 to 2 with RFLAGS.AC clear, or an access to a system structure (GDT, LDT, IDT, TSS, a gate's stack) whatever
    /// CPL and AC are: SMAP is in force.
    Supervisor,
    /// A program's own operand at CPL 0 to 2 with RFLAGS.AC set: SMAP is lifted.
    SupervisorAc,
}

impl Privilege {
    /// Every privilege, in the order of [`Privilege::index`].
    pub const ALL: [Privilege; 3] = [Privilege::User, Privilege::Supervisor, Privilege::SupervisorAc];

    /// Whether U/S=1 pages only may be used.
    #[inline]
    pub const fn is_user(self) -> bool {
        matches!(self, Privilege::User)
    }
    /// Position in [`Privilege::ALL`].
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }
}

/// One access as the page walker judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Read, write or fetch.
    pub kind: AccessKind,
    /// On whose authority.
    pub privilege: Privilege,
}

impl Access {
    /// An access of `kind` on the authority of `privilege`.
    #[inline]
    pub const fn new(kind: AccessKind, privilege: Privilege) -> Access {
        Access { kind, privilege }
    }
}
