//! The identity block: what a guest's owner expects of a launch, signed.
//!
//! Source: SEV-SNP firmware ABI, "ID Block Structure", "ID Authentication Information Structure".

use emu_core::page::PAGE_SIZE;
use p384::ecdsa::signature::Verifier;
use p384::ecdsa::{Signature, VerifyingKey};

use super::bytes::{get, get_u32, get_u64, put};
use super::chip::{SCALAR_BYTES, SIGNATURE_BYTES, scalar_at};
use super::digest::{LaunchDigest, sha384};
use super::policy::Policy;
use super::status::FirmwareStatus;

/// Length of an identity block.
pub const ID_BLOCK_BYTES: usize = 0x60;

/// What the owner expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdBlock {
    /// The launch digest.
    pub digest: LaunchDigest,
    /// Which family of images.
    pub family_id: [u8; 16],
    /// Which image.
    pub image_id: [u8; 16],
    /// Version of this structure; 1.
    pub version: u32,
    /// Security version of the guest.
    pub guest_svn: u32,
    /// The policy.
    pub policy: Policy,
}

impl IdBlock {
    /// The block with these bytes.
    pub fn from_bytes(bytes: &[u8; ID_BLOCK_BYTES]) -> IdBlock {
        IdBlock {
            digest: LaunchDigest::new(get(bytes, 0)),
            family_id: get(bytes, 0x30),
            image_id: get(bytes, 0x40),
            version: get_u32(bytes, 0x50),
            guest_svn: get_u32(bytes, 0x54),
            policy: Policy::new(get_u64(bytes, 0x58)),
        }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; ID_BLOCK_BYTES] {
        let mut bytes = [0; ID_BLOCK_BYTES];
        put(&mut bytes, 0, self.digest.bytes());
        put(&mut bytes, 0x30, &self.family_id);
        put(&mut bytes, 0x40, &self.image_id);
        put(&mut bytes, 0x50, &self.version.to_le_bytes());
        put(&mut bytes, 0x54, &self.guest_svn.to_le_bytes());
        put(&mut bytes, 0x58, &self.policy.bits().to_le_bytes());
        bytes
    }
}

/// Places in the authentication page.
mod auth {
    pub(super) const ID_KEY_ALGORITHM: usize = 0x000;
    pub(super) const AUTHOR_KEY_ALGORITHM: usize = 0x004;
    pub(super) const ID_BLOCK_SIGNATURE: usize = 0x040;
    pub(super) const ID_KEY: usize = 0x240;
    pub(super) const ID_KEY_SIGNATURE: usize = 0x680;
    pub(super) const AUTHOR_KEY: usize = 0x880;
}
/// Length of a public key: the curve, two coordinates, zeros.
const KEY_BYTES: usize = 0x404;
/// ECDSA over P-384 with SHA-384.
const ALGORITHM: u32 = 1;
/// P-384.
const CURVE: u32 = 2;

/// A public key with the signature that was made with it, numbers little-endian as in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdKey {
    /// The algorithm's number; 1 is ECDSA over P-384 with SHA-384.
    pub algorithm: u32,
    /// The curve's number; 2 is P-384.
    pub curve: u32,
    /// The point's coordinates.
    pub point: [[u8; SCALAR_BYTES]; 2],
    /// R and S.
    pub signature: [[u8; SCALAR_BYTES]; 2],
}

/// What the authentication page consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdAuth {
    /// The identity key, and its signature of the block.
    pub id: IdKey,
    /// The author's key, and its signature of the identity key, if there is one.
    pub author: Option<IdKey>,
}

impl IdAuth {
    /// The page.
    pub fn to_page(&self) -> Box<[u8; PAGE_SIZE]> {
        let mut page = Box::new([0; PAGE_SIZE]);
        let id = [auth::ID_KEY_ALGORITHM, auth::ID_KEY, auth::ID_BLOCK_SIGNATURE];
        let author = [auth::AUTHOR_KEY_ALGORITHM, auth::AUTHOR_KEY, auth::ID_KEY_SIGNATURE];
        let keys = [(id, Some(&self.id)), (author, self.author.as_ref())];
        for ([algorithm, public, signature], key) in keys {
            let Some(key) = key else { continue };
            put(&mut page[..], algorithm, &key.algorithm.to_le_bytes());
            put(&mut page[..], public, &key.curve.to_le_bytes());
            put(&mut page[..], public + 4, key.point.as_flattened());
            put(&mut page[..], signature, key.signature.as_flattened());
        }
        page
    }

    /// Whether there is an author's key.
    pub fn author(&self) -> AuthorKey {
        if self.author.is_some() { AuthorKey::Present } else { AuthorKey::Absent }
    }
}

/// Whether the identity key is itself signed, by an author's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorKey {
    /// It is not.
    Absent,
    /// It is.
    Present,
}

/// An identity block with its signatures.
#[derive(Clone, Copy, Debug)]
pub struct SignedId<'a> {
    /// The block.
    pub block: &'a [u8; ID_BLOCK_BYTES],
    /// Keys and signatures.
    pub auth: &'a [u8; PAGE_SIZE],
    /// Whether there is an author's key.
    pub author: AuthorKey,
}

/// The identity of a guest whose signatures hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) block: IdBlock,
    /// SHA-384 of the identity key.
    pub(super) id_key_digest: [u8; 48],
    /// SHA-384 of the author's key, if there is one.
    pub(super) author_key_digest: Option<[u8; 48]>,
}

impl SignedId<'_> {
    /// Checks the block against a guest, and its signatures, in the firmware's order.
    pub(super) fn check(&self, digest: LaunchDigest, policy: Policy) -> Result<Identity, FirmwareStatus> {
        let block = IdBlock::from_bytes(self.block);
        if block.digest != digest {
            return Err(FirmwareStatus::BadMeasurement);
        }
        if block.policy != policy {
            return Err(FirmwareStatus::PolicyFailure);
        }
        let has_author = self.author == AuthorKey::Present;
        let algorithm = |at| get_u32(self.auth, at) == ALGORITHM;
        if !algorithm(auth::ID_KEY_ALGORITHM) || has_author && !algorithm(auth::AUTHOR_KEY_ALGORITHM) {
            return Err(FirmwareStatus::InvalidParam);
        }
        let id_key = &self.auth[auth::ID_KEY..][..KEY_BYTES];
        verify(id_key, &self.auth[auth::ID_BLOCK_SIGNATURE..][..SIGNATURE_BYTES], self.block)?;
        let mut author_key_digest = None;
        if has_author {
            let author_key = &self.auth[auth::AUTHOR_KEY..][..KEY_BYTES];
            verify(author_key, &self.auth[auth::ID_KEY_SIGNATURE..][..SIGNATURE_BYTES], id_key)?;
            author_key_digest = Some(sha384(author_key));
        }
        Ok(Identity { block, id_key_digest: sha384(id_key), author_key_digest })
    }
}

fn verify(key: &[u8], signature: &[u8], message: &[u8]) -> Result<(), FirmwareStatus> {
    let checked = || {
        let [x, y] = [scalar_at(key, 4)?, scalar_at(key, 4 + SCALAR_BYTES)?];
        let mut point = [4; 97];
        put(&mut point, 1, &x);
        put(&mut point, 49, &y);
        let key = VerifyingKey::from_sec1_bytes(&point).ok()?;
        let [r, s] = [scalar_at(signature, 0)?, scalar_at(signature, SCALAR_BYTES)?];
        let signature = Signature::from_scalars(r, s).ok()?;
        key.verify(message, &signature).ok()
    };
    if get_u32(key, 0) != CURVE {
        return Err(FirmwareStatus::BadSignature);
    }
    checked().ok_or(FirmwareStatus::BadSignature)
}

#[cfg(test)]
mod tests {
    use p384::ecdsa::SigningKey;
    use p384::ecdsa::signature::Signer;

    use super::super::chip::signature_bytes;
    use super::*;

    const DIGEST: LaunchDigest = LaunchDigest::new([7; 48]);
    const BLOCK: IdBlock = IdBlock {
        digest: DIGEST,
        family_id: [1; 16],
        image_id: [2; 16],
        version: 1,
        guest_svn: 9,
        policy: Policy::USUAL,
    };

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_slice(&[byte; 48]).unwrap()
    }

    fn key_bytes(key: &SigningKey) -> [u8; KEY_BYTES] {
        let mut bytes = [0; KEY_BYTES];
        put(&mut bytes, 0, &CURVE.to_le_bytes());
        let point = key.verifying_key().to_sec1_point(false);
        for (at, coordinate) in [(4, &point.as_bytes()[1..49]), (4 + SCALAR_BYTES, &point.as_bytes()[49..])] {
            let reversed: Vec<u8> = coordinate.iter().rev().copied().collect();
            put(&mut bytes, at, &reversed);
        }
        bytes
    }

    fn sign(key: &SigningKey, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let signature: Signature = key.sign(message);
        signature_bytes(&signature)
    }

    fn auth_page(block: &[u8]) -> [u8; PAGE_SIZE] {
        let (id, author) = (key(3), key(5));
        let id_key = key_bytes(&id);
        let mut page = [0; PAGE_SIZE];
        put(&mut page, auth::ID_KEY_ALGORITHM, &ALGORITHM.to_le_bytes());
        put(&mut page, auth::AUTHOR_KEY_ALGORITHM, &ALGORITHM.to_le_bytes());
        put(&mut page, auth::ID_BLOCK_SIGNATURE, &sign(&id, block));
        put(&mut page, auth::ID_KEY, &id_key);
        put(&mut page, auth::ID_KEY_SIGNATURE, &sign(&author, &id_key));
        put(&mut page, auth::AUTHOR_KEY, &key_bytes(&author));
        page
    }

    #[test]
    fn signatures_that_hold_give_the_digests_of_their_keys() {
        let block = BLOCK.to_bytes();
        let auth = auth_page(&block);
        for author in [AuthorKey::Absent, AuthorKey::Present] {
            let identity = SignedId { block: &block, auth: &auth, author }.check(DIGEST, Policy::USUAL).unwrap();
            assert_eq!(identity.block, BLOCK);
            assert_eq!(identity.id_key_digest, sha384(&key_bytes(&key(3))));
            let digest = (author == AuthorKey::Present).then(|| sha384(&key_bytes(&key(5))));
            assert_eq!(identity.author_key_digest, digest);
        }
    }

    #[test]
    fn the_page_is_what_it_consists_of() {
        let block = BLOCK.to_bytes();
        let halves = |bytes: &[u8]| [0, SCALAR_BYTES].map(|at| *bytes[at..].first_chunk().unwrap());
        let part = |key: &[u8], signature: &[u8]| IdKey {
            algorithm: ALGORITHM,
            curve: CURVE,
            point: halves(&key[4..]),
            signature: halves(signature),
        };
        let (id, author) = (key_bytes(&key(3)), key_bytes(&key(5)));
        let id = part(&id, &sign(&key(3), &block));
        let author = part(&author, &sign(&key(5), &key_bytes(&key(3))));
        let auth = IdAuth { id, author: Some(author) };
        assert_eq!((*auth.to_page(), auth.author()), (auth_page(&block), AuthorKey::Present));
        let alone = IdAuth { id, author: None };
        assert!(alone.to_page()[auth::ID_KEY_SIGNATURE..].iter().all(|&byte| byte == 0));
        assert_eq!(alone.author(), AuthorKey::Absent);
    }

    #[test]
    fn another_digest_or_policy_is_refused_before_any_signature() {
        let block = BLOCK.to_bytes();
        let id = SignedId { block: &block, auth: &[0; PAGE_SIZE], author: AuthorKey::Absent };
        assert_eq!(id.check(LaunchDigest::EMPTY, Policy::USUAL), Err(FirmwareStatus::BadMeasurement));
        assert_eq!(id.check(DIGEST, Policy::new(0x7_0000)), Err(FirmwareStatus::PolicyFailure));
        assert_eq!(id.check(DIGEST, Policy::USUAL), Err(FirmwareStatus::InvalidParam));
    }

    #[test]
    fn a_changed_byte_of_a_key_or_a_signature_is_found() {
        let block = BLOCK.to_bytes();
        let places = [
            auth::ID_BLOCK_SIGNATURE,
            auth::ID_BLOCK_SIGNATURE + SCALAR_BYTES,
            auth::ID_BLOCK_SIGNATURE + 71,
            auth::ID_KEY,
            auth::ID_KEY + 4,
            auth::ID_KEY_SIGNATURE,
            auth::AUTHOR_KEY + 4 + SCALAR_BYTES,
        ];
        for place in places {
            let mut auth = auth_page(&block);
            auth[place] ^= 0x10;
            let id = SignedId { block: &block, auth: &auth, author: AuthorKey::Present };
            assert_eq!(id.check(DIGEST, Policy::USUAL), Err(FirmwareStatus::BadSignature), "{place:#x}");
        }
        let auth = auth_page(&block);
        let mut changed = block;
        changed[0x30] ^= 1;
        let id = SignedId { block: &changed, auth: &auth, author: AuthorKey::Absent };
        assert_eq!(id.check(DIGEST, Policy::USUAL), Err(FirmwareStatus::BadSignature));
    }
}
