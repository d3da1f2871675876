//! What a running guest asks the firmware: reports and keys.
//!
//! Source: SEV-SNP firmware ABI, "Guest Messages", and AMD's published firmware for what is checked in which order; Linux
//! `arch/x86/kvm/svm/sev.c:snp_handle_guest_req`, `snp_handle_ext_guest_req` for the pages and the certificates.
//!
//! Left out: guest messages about CPUID, migration and the time stamp counter, which the firmware here does not know
//! (`INVALID_PARAM`).

use emu_core::page::PAGE_SIZE;

use super::bytes::{get, get_u32, get_u64, is_zero, put};
use super::chip::{TcbVersion, derive};
use super::context::{GuestContext, VcekUse};
use super::message::Message;
use super::report::{REPORT_BYTES, Report};
use super::status::FirmwareStatus;
use crate::snp::ghcb::{CertificateArea, GhcbMemory, GhcbUnreachable, GuestRequest, GuestRequestStatus};

/// Kinds of messages.
pub mod kind {
    /// Wants a derived key.
    pub const KEY_REQUEST: u8 = 3;
    /// Gives it.
    pub const KEY_RESPONSE: u8 = 4;
    /// Wants a report.
    pub const REPORT_REQUEST: u8 = 5;
    /// Gives it.
    pub const REPORT_RESPONSE: u8 = 6;
}

/// Version of every payload here.
const MESSAGE_VERSION: u8 = 1;
/// Where the substance of a response starts, after a status and reserved bytes.
const RESPONSE_HEADER_BYTES: usize = 0x20;
/// Highest privilege level in number.
const VMPL_MAX: u32 = 3;

/// Which key signs, or is the root of a derivation. There is no loaded key (VLEK) here, only the chip's.
fn chip_key_allowed(selector: u32, vcek: VcekUse) -> Result<(), FirmwareStatus> {
    match selector {
        // Either, or the chip's.
        0 | 1 if vcek == VcekUse::Allowed => Ok(()),
        _ => Err(FirmwareStatus::InvalidKey),
    }
}

impl GuestContext {
    /// SNP_GUEST_REQUEST: answers the message in `request`. What a message asks for and does not get is told in the
    /// response; a refusal is about the message itself, and there is no response.
    pub fn guest_request(&mut self, request: &[u8; PAGE_SIZE]) -> Result<Box<[u8; PAGE_SIZE]>, FirmwareStatus> {
        let vmpcks = *self.running_vmpcks()?;
        let message = Message::open(request, &vmpcks)?;
        let count = self.message_count(message.vmpck);
        // The response takes the next number; the count stays even.
        if count >= u64::MAX - 1 || message.sequence != count + 1 {
            return Err(FirmwareStatus::AeadOverflow);
        }
        if message.version == 0 || message.version > MESSAGE_VERSION {
            return Err(FirmwareStatus::InvalidParam);
        }
        let (kind, payload) = match message.kind {
            kind::REPORT_REQUEST => (kind::REPORT_RESPONSE, self.report_response(&message)),
            kind::KEY_REQUEST => (kind::KEY_RESPONSE, self.key_response(&message)),
            _ => return Err(FirmwareStatus::InvalidParam),
        };
        let response = Message { sequence: message.sequence + 1, kind, version: MESSAGE_VERSION, payload, ..message };
        let page = response.seal(&vmpcks[usize::from(response.vmpck)])?;
        self.set_message_count(response.vmpck, response.sequence);
        Ok(page)
    }

    fn report_response(&self, message: &Message) -> Vec<u8> {
        let mut payload = vec![0; RESPONSE_HEADER_BYTES + REPORT_BYTES];
        put(&mut payload, 4, &(REPORT_BYTES as u32).to_le_bytes());
        match self.report(message) {
            Ok(report) => put(&mut payload, RESPONSE_HEADER_BYTES, &report),
            Err(status) => put(&mut payload, 0, &status.code().to_le_bytes()),
        }
        payload
    }

    /// MSG_REPORT_REQ: 64 bytes of the guest's, a privilege level, a selector of the key.
    fn report(&self, message: &Message) -> Result<[u8; REPORT_BYTES], FirmwareStatus> {
        const REQUEST_BYTES: usize = 0x60;
        let request = message.payload.get(..REQUEST_BYTES).ok_or(FirmwareStatus::InvalidParam)?;
        let (vmpl, selector) = (get_u32(request, 0x40), get_u32(request, 0x44));
        if !is_zero(&request[0x48..]) || selector & !3 != 0 {
            return Err(FirmwareStatus::InvalidParam);
        }
        chip_key_allowed(selector, self.vcek_use())?;
        if vmpl < u32::from(message.vmpck) || vmpl > VMPL_MAX {
            return Err(FirmwareStatus::InvalidParam);
        }
        let report = Report { vmpl, report_data: get(request, 0), ..self.report_template() };
        Ok(report.signed(self.chip()))
    }

    fn key_response(&self, message: &Message) -> Vec<u8> {
        let mut payload = vec![0; RESPONSE_HEADER_BYTES + 32];
        match self.derived_key(message) {
            Ok(key) => put(&mut payload, RESPONSE_HEADER_BYTES, &key),
            Err(status) => put(&mut payload, 0, &status.code().to_le_bytes()),
        }
        payload
    }

    /// MSG_KEY_REQ: a root key, which fields of the guest go into the key, a privilege level, two versions.
    fn derived_key(&self, message: &Message) -> Result<[u8; 32], FirmwareStatus> {
        const REQUEST_BYTES: usize = 0x20;
        let request = message.payload.get(..REQUEST_BYTES).ok_or(FirmwareStatus::InvalidParam)?;
        let selectors = get_u32(request, 0);
        let fields = get_u64(request, 8);
        let (vmpl, guest_svn) = (get_u32(request, 0x10), get_u32(request, 0x14));
        let tcb = get_u64(request, 0x18);
        if selectors & !7 != 0 || !is_zero(&request[4..8]) {
            return Err(FirmwareStatus::InvalidParam);
        }
        let from_guests_root = selectors & 1 != 0;
        if !from_guests_root {
            chip_key_allowed(selectors >> 1 & 3, self.vcek_use())?;
        }
        if vmpl < u32::from(message.vmpck) || vmpl > VMPL_MAX || fields & !field::ALL != 0 {
            return Err(FirmwareStatus::InvalidParam);
        }
        let about = self.report_template();
        let identity_key = match about.author_key_digest {
            Some(digest) => digest,
            None => about.id_key_digest,
        };
        let mut mix = Vec::new();
        mix.extend(selectors.to_le_bytes());
        mix.extend(fields.to_le_bytes());
        mix.extend(vmpl.to_le_bytes());
        mix.extend(about.host_data);
        mix.extend(identity_key);
        let mut chip_tcb = self.chip().tcb();
        if fields & field::TCB_VERSION != 0 {
            let wanted = TcbVersion::from_bits(tcb).filter(|wanted| wanted.within(chip_tcb));
            chip_tcb = wanted.ok_or(FirmwareStatus::InvalidParam)?;
            mix.extend(tcb.to_le_bytes());
        }
        if fields & field::GUEST_SVN != 0 {
            if guest_svn > about.guest_svn {
                return Err(FirmwareStatus::InvalidParam);
            }
            mix.extend(guest_svn.to_le_bytes());
        }
        let chosen: [(u64, &[u8]); 4] = [
            (field::MEASUREMENT, &about.measurement),
            (field::FAMILY_ID, &about.family_id),
            (field::IMAGE_ID, &about.image_id),
            (field::GUEST_POLICY, &about.policy.to_le_bytes()),
        ];
        mix.extend(chosen.iter().filter(|(bit, _)| fields & bit != 0).flat_map(|&(_, bytes)| bytes));
        let key = if from_guests_root {
            derive(self.root_key(), "derived key", &mix)
        } else {
            derive(&self.chip().endorsement_secret(chip_tcb), "derived key", &mix)
        };
        Ok(get(&key, 0))
    }

    /// Answers a VMGEXIT with a guest request: takes the message from the guest's page, and puts the response and, for a
    /// report, the certificates into its pages. `certificates` is a table as the GHCB specification describes it, or empty.
    pub fn serve(
        &mut self,
        request: &GuestRequest,
        certificates: &[u8],
        memory: &mut dyn GhcbMemory,
    ) -> GuestRequestStatus {
        // Where KVM would end the machine the guest is told that its pages are none.
        let unreachable = |_: GhcbUnreachable| GuestRequestStatus::Firmware(FirmwareStatus::InvalidAddress.code());
        self.try_serve(request, certificates, memory).unwrap_or_else(unreachable)
    }

    fn try_serve(
        &mut self,
        request: &GuestRequest,
        certificates: &[u8],
        memory: &mut dyn GhcbMemory,
    ) -> Result<GuestRequestStatus, GhcbUnreachable> {
        let mut page = Box::new([0; PAGE_SIZE]);
        memory.read(request.request, &mut page[..])?;
        if let Some(area) = request.certificates.filter(|_| Message::kind_of(&page) == kind::REPORT_REQUEST)
            && let Some(refused) = put_certificates(area, certificates, memory)?
        {
            return Ok(refused);
        }
        Ok(match self.guest_request(&page) {
            Ok(response) => {
                memory.write(request.response, &response[..])?;
                GuestRequestStatus::Firmware(0)
            }
            Err(status) => GuestRequestStatus::Firmware(status.code()),
        })
    }
}

/// Puts certificates where the guest wants them. An empty table is its terminating entry alone: 24 zero bytes.
fn put_certificates(
    area: CertificateArea,
    certificates: &[u8],
    memory: &mut dyn GhcbMemory,
) -> Result<Option<GuestRequestStatus>, GhcbUnreachable> {
    if area.gpa.page_offset() != 0 {
        return Ok(Some(GuestRequestStatus::CertificatesMisaligned));
    }
    let pages = certificates.len().div_ceil(PAGE_SIZE) as u64;
    if pages > area.pages {
        return Ok(Some(GuestRequestStatus::CertificatesNeed { pages }));
    }
    if certificates.is_empty() {
        // A guest that gives no room and gets no certificates is content.
        if area.pages != 0 {
            memory.write(area.gpa, &[0; 24])?;
        }
    } else {
        memory.write(area.gpa, certificates)?;
    }
    Ok(None)
}

/// Fields of the guest that go into a derived key.
mod field {
    pub(super) const GUEST_POLICY: u64 = 1 << 0;
    pub(super) const IMAGE_ID: u64 = 1 << 1;
    pub(super) const FAMILY_ID: u64 = 1 << 2;
    pub(super) const MEASUREMENT: u64 = 1 << 3;
    pub(super) const GUEST_SVN: u64 = 1 << 4;
    pub(super) const TCB_VERSION: u64 = 1 << 5;
    pub(super) const ALL: u64 = (1 << 6) - 1;
}
