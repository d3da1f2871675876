//! The processor that a guest is attested to run on, and its keys.
//!
//! A real processor derives them from secrets that only it and AMD know. Here everything follows from a seed, so that a run
//! repeats; none of it proves anything, and the chip's identity says so in words. A verifier that expects AMD's certificates
//! rejects these reports.
//!
//! Source: SEV-SNP firmware ABI, "Versioned Chip Endorsement Key", "Key Derivation".

use p384::ecdsa::signature::Signer;
use p384::ecdsa::{Signature, SigningKey, VerifyingKey};

use super::bytes::put;
use super::digest::sha384;

/// What stands in place of a chip's identity.
const CHIP_ID: &[u8; 64] = b"software model of SEV-SNP, not an AMD processor; proves nothing.";

/// Length of a signature in the firmware's form: R and S of 72 bytes each, little-endian, and zeros.
pub(super) const SIGNATURE_BYTES: usize = 512;
/// Length of R, S, and of a coordinate of a point.
pub(super) const SCALAR_BYTES: usize = 72;

/// Security versions of the parts of the trusted computing base (TCB_VERSION).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcbVersion {
    /// Boot loader.
    pub boot_loader: u8,
    /// Trusted execution environment.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

impl TcbVersion {
    /// The 64-bit form.
    pub const fn bits(self) -> u64 {
        u64::from_le_bytes([self.boot_loader, self.tee, 0, 0, 0, 0, self.snp, self.microcode])
    }

    /// The version with these bits, if the reserved ones are 0.
    pub const fn from_bits(bits: u64) -> Option<TcbVersion> {
        let [boot_loader, tee, 0, 0, 0, 0, snp, microcode] = bits.to_le_bytes() else { return None };
        Some(TcbVersion { boot_loader, tee, snp, microcode })
    }

    /// Whether no part is newer than that of `other`.
    pub(super) const fn within(self, other: TcbVersion) -> bool {
        self.boot_loader <= other.boot_loader
            && self.tee <= other.tee
            && self.snp <= other.snp
            && self.microcode <= other.microcode
    }
}

/// Derives bytes from a secret, for a purpose and in a context. Each part is preceded by its length, so that no two
/// different inputs are the same bytes.
pub(super) fn derive(secret: &[u8], purpose: &str, context: &[u8]) -> [u8; 48] {
    let mut input = Vec::with_capacity(24 + secret.len() + purpose.len() + context.len());
    for part in [purpose.as_bytes(), secret, context] {
        input.extend((part.len() as u64).to_le_bytes());
        input.extend(part);
    }
    sha384(&input)
}

/// The processor with its secure processor.
#[derive(Clone, Debug)]
pub struct Chip {
    seed: [u8; 8],
    /// CPUID leaf 1 EAX.
    pub(super) fms: u32,
    pub(super) tcb: TcbVersion,
}

impl Chip {
    /// A chip whose secrets follow from `seed`; `fms` is family, model and stepping as in CPUID leaf 1 EAX.
    pub fn new(seed: u64, fms: u32) -> Chip {
        Chip { seed: seed.to_le_bytes(), fms, tcb: TcbVersion { boot_loader: 1, tee: 0, snp: 1, microcode: 1 } }
    }

    /// The versions of its parts.
    pub const fn tcb(&self) -> TcbVersion {
        self.tcb
    }

    /// 64 bytes that say which chip it is.
    pub const fn id(&self) -> &'static [u8; 64] {
        CHIP_ID
    }

    /// The secret behind the chip's endorsement key at some versions.
    pub(super) fn endorsement_secret(&self, tcb: TcbVersion) -> [u8; 48] {
        derive(&self.seed, "endorsement key", &tcb.bits().to_le_bytes())
    }

    /// Secrets of the `number`th guest.
    pub(super) fn guest_secret(&self, number: u64, purpose: &str) -> [u8; 32] {
        *derive(&self.seed, purpose, &number.to_le_bytes()).first_chunk().unwrap_or(&[0; 32])
    }

    fn signing_key(&self) -> SigningKey {
        let mut candidate = self.endorsement_secret(self.tcb);
        // Nearly every 384 bits are a scalar of the curve; the next digest is another candidate.
        loop {
            match SigningKey::from_slice(&candidate) {
                Ok(key) => return key,
                Err(_) => candidate = sha384(&candidate),
            }
        }
    }

    /// The public half of the key that signs reports, a point of P-384.
    pub fn verifying_key(&self) -> VerifyingKey {
        *self.signing_key().verifying_key()
    }

    /// ECDSA with SHA-384 over `message`, in the firmware's form. The nonce follows from key and message (RFC 6979).
    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature: Signature = self.signing_key().sign(message);
        signature_bytes(&signature)
    }
}

/// A signature in the firmware's form.
pub(super) fn signature_bytes(signature: &Signature) -> [u8; SIGNATURE_BYTES] {
    let mut bytes = [0; SIGNATURE_BYTES];
    let (r, s) = signature.split_bytes();
    for (at, scalar) in [(0, r), (SCALAR_BYTES, s)] {
        let mut scalar: [u8; 48] = scalar.into();
        scalar.reverse();
        put(&mut bytes, at, &scalar);
    }
    bytes
}

/// The scalar at `at`, little-endian over 72 bytes, as 48 bytes big-endian; `None` if it is longer.
pub(super) fn scalar_at(bytes: &[u8], at: usize) -> Option<[u8; 48]> {
    let field = bytes.get(at..at + SCALAR_BYTES)?;
    let (low, high) = field.split_first_chunk::<48>()?;
    let mut scalar = *low;
    scalar.reverse();
    high.iter().all(|&byte| byte == 0).then_some(scalar)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_keys_and_another_one_others() {
        let [a, b, c] = [1, 1, 2].map(|seed| Chip::new(seed, 0));
        assert_eq!(a.verifying_key(), b.verifying_key());
        assert_ne!(a.verifying_key(), c.verifying_key());
        assert_ne!(a.guest_secret(0, "x"), a.guest_secret(1, "x"));
        assert_ne!(a.guest_secret(0, "x"), a.guest_secret(0, "y"));
    }

    #[test]
    fn parts_of_a_derivation_do_not_run_into_one_another() {
        assert_ne!(derive(b"ab", "c", b"d"), derive(b"a", "c", b"bd"));
        assert_ne!(derive(b"", "ab", b""), derive(b"b", "a", b""));
    }

    #[test]
    fn versions_with_reserved_bits_are_none() {
        let tcb = TcbVersion { boot_loader: 1, tee: 2, snp: 3, microcode: 4 };
        assert_eq!(tcb.bits(), 0x0403_0000_0000_0201);
        for bit in 0..64 {
            let reserved = (16..48).contains(&bit);
            assert_eq!(TcbVersion::from_bits(1 << bit).is_none(), reserved, "bit {bit}");
        }
        assert_eq!(TcbVersion::from_bits(tcb.bits()), Some(tcb));
    }

    #[test]
    fn the_chip_says_that_it_is_none() {
        assert!(String::from_utf8_lossy(Chip::new(0, 0).id()).contains("not an AMD processor"));
    }
}
