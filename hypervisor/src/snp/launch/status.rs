//! What the firmware answers to a command.

use thiserror::Error;

macro_rules! statuses {
    ($($(#[$meta:meta])* $Name:ident = $code:literal, $words:literal;)*) => {
        /// Why the firmware refuses a command or a guest message, by its code (SEV-SNP firmware ABI, "Status Codes"; Linux
        /// `sev_ret_code`). Success is not one of them: its code is 0.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
        #[repr(u32)]
        pub enum FirmwareStatus {
            $($(#[$meta])* #[error($words)] $Name = $code,)*
        }

        impl FirmwareStatus {
            /// All, by code.
            pub const ALL: &[FirmwareStatus] = &[$(FirmwareStatus::$Name),*];
        }
    };
}

statuses! {
    /// The platform is not initialised, or is.
    InvalidPlatformState = 0x01, "INVALID_PLATFORM_STATE: the platform's state does not allow the command";
    /// The guest is not in the state that the command needs.
    InvalidGuestState = 0x02, "INVALID_GUEST_STATE: the guest's state does not allow the command";
    /// The platform is configured in another way.
    InvalidConfig = 0x03, "INVALID_CONFIG: the platform's configuration does not allow the command";
    /// A buffer has another length.
    InvalidLength = 0x04, "INVALID_LEN: a buffer is too short";
    /// The policy forbids it, or cannot be kept.
    PolicyFailure = 0x07, "POLICY_FAILURE: the guest's policy forbids this, or cannot be kept";
    /// The guest has no ASID.
    Inactive = 0x08, "INACTIVE: the guest has no ASID";
    /// An address is not aligned, or of no memory.
    InvalidAddress = 0x09, "INVALID_ADDRESS: an address is misaligned or out of range";
    /// A signature does not verify.
    BadSignature = 0x0a, "BAD_SIGNATURE: a signature does not verify";
    /// A measurement or an authentication tag is another.
    BadMeasurement = 0x0b, "BAD_MEASUREMENT: a measurement or an authentication tag does not match";
    /// The ASID is another guest's.
    AsidOwned = 0x0c, "ASID_OWNED: the ASID is another guest's";
    /// There is no such ASID.
    InvalidAsid = 0x0d, "INVALID_ASID: there is no such ASID";
    /// There is no such guest.
    InvalidGuest = 0x10, "INVALID_GUEST: there is no such guest";
    /// There is no such command.
    InvalidCommand = 0x11, "INVALID_COMMAND: there is no such command";
    /// The guest has an ASID already.
    Active = 0x12, "ACTIVE: the guest has an ASID already";
    /// The firmware does not offer it.
    Unsupported = 0x15, "UNSUPPORTED: the firmware does not offer this";
    /// A parameter or a reserved field has a value that it cannot have.
    InvalidParam = 0x16, "INVALID_PARAM: a parameter cannot have this value";
    /// A resource is used up.
    ResourceLimit = 0x17, "RESOURCE_LIMIT: a resource is used up";
    /// A page has another size.
    InvalidPageSize = 0x19, "INVALID_PAGE_SIZE: a page has another size";
    /// A page's state does not allow it.
    InvalidPageState = 0x1a, "INVALID_PAGE_STATE: a page's state does not allow the command";
    /// A page is another guest's.
    InvalidPageOwner = 0x1c, "INVALID_PAGE_OWNER: a page is another guest's";
    /// A message has another sequence number than the next, or there are no more.
    AeadOverflow = 0x1d, "AEAD_OFLOW: a message's sequence number is not the next, or there are no more";
    /// The key that is asked for is not there.
    InvalidKey = 0x27, "INVALID_KEY: the key that is asked for is not available";
}

impl FirmwareStatus {
    /// The code.
    pub const fn code(self) -> u32 {
        self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_ascend_and_none_is_success() {
        assert!(FirmwareStatus::ALL.windows(2).all(|pair| pair[0].code() < pair[1].code()));
        assert_ne!(FirmwareStatus::ALL[0].code(), 0);
    }
}
