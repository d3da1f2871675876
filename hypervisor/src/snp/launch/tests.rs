//! A guest from its context to its reports.

use std::sync::Arc;

use emu_core::cpuid::CpuidResult;
use emu_core::page::PAGE_SIZE;
use emu_core::{Gpa, PageSize};
use mmu::Asid;
use mmu::rmp::VmplPermissions;
use p384::ecdsa::Signature;
use p384::ecdsa::signature::Verifier;
use proptest::prelude::*;

use super::request::kind;
use super::*;
use crate::snp::ghcb::{CertificateArea, GhcbMemory, GhcbUnreachable, GuestRequest, GuestRequestStatus};

const START: LaunchStart = LaunchStart { policy: Policy::USUAL, gosvw: [7; 16], number: 1 };
const PAGE: [u8; PAGE_SIZE] = [0xab; PAGE_SIZE];

fn chip() -> Arc<Chip> {
    Arc::new(Chip::new(42, 0x00a1_0f11))
}

fn launching() -> GuestContext {
    let mut guest = GuestContext::create(chip());
    guest.launch_start(&START).unwrap();
    guest.activate(Asid(1)).unwrap();
    guest
}

fn running() -> GuestContext {
    let mut guest = launching();
    guest.launch_update(&update(PageType::Normal, 0x1000, &PAGE)).unwrap();
    guest.launch_finish(&LaunchFinish { host_data: [5; 32], ..LaunchFinish::default() }).unwrap();
    guest
}

fn update(kind: PageType, gpa: u64, contents: &[u8]) -> LaunchUpdate<'_> {
    LaunchUpdate {
        kind,
        gpa: Gpa::new(gpa),
        size: PageSize::Size4K,
        contents,
        permissions: [VmplPermissions::empty(); 3],
    }
}

/// The keys, as the guest reads them in its secrets page.
fn guest_keys() -> [Vmpck; 4] {
    assert_eq!(GuestContext::create(chip()).secrets(), Err(FirmwareStatus::InvalidGuestState));
    let filled_before = launching().secrets().unwrap().vmpcks;
    let filled = match launching().launch_update(&update(PageType::Secrets, 0, &[])) {
        Ok(LaunchedPage::Written(page)) => SecretsPage::from_bytes(&page).vmpcks,
        other => panic!("{other:?}"),
    };
    assert_eq!(filled, filled_before);
    filled
}

fn ask(guest: &mut GuestContext, message: &Message) -> Result<Message, FirmwareStatus> {
    let keys = guest_keys();
    let page = message.seal(&keys[usize::from(message.vmpck & 3)]).unwrap();
    guest.guest_request(&page).map(|response| Message::open(&response, &keys).unwrap())
}

fn report_request(sequence: u64, vmpck: u8, vmpl: u32) -> Message {
    let mut payload = vec![0; 0x60];
    payload[..64].fill(0x77);
    payload[0x40..0x44].copy_from_slice(&vmpl.to_le_bytes());
    Message { sequence, kind: kind::REPORT_REQUEST, version: 1, vmpck, payload }
}

fn key_request(sequence: u64, change: impl FnOnce(&mut [u8])) -> Message {
    let mut payload = vec![0; 0x20];
    change(&mut payload);
    Message { sequence, kind: kind::KEY_REQUEST, version: 1, vmpck: 0, payload }
}

/// The status that a response carries.
fn status(message: &Message) -> u32 {
    u32::from_le_bytes(*message.payload.first_chunk().unwrap())
}

#[test]
fn a_guest_goes_from_init_over_launch_to_running() {
    let mut guest = GuestContext::create(chip());
    assert_eq!(guest.state(), GuestState::Init);
    guest.launch_start(&START).unwrap();
    assert_eq!((guest.state(), guest.asid()), (GuestState::Launch, None));
    guest.activate(Asid(9)).unwrap();
    assert_eq!((guest.asid(), guest.policy()), (Some(Asid(9)), Some(Policy::USUAL)));
    guest.launch_finish(&LaunchFinish::default()).unwrap();
    assert_eq!(guest.state(), GuestState::Running);
}

#[test]
fn every_command_is_refused_in_every_other_state() {
    let bound = || {
        let mut guest = GuestContext::create(chip());
        guest.launch_start(&START).unwrap();
        guest
    };
    type Command = (&'static str, fn(&mut GuestContext) -> Result<(), FirmwareStatus>);
    let commands: [Command; 5] = [
        ("start", |guest| guest.launch_start(&START)),
        ("activate", |guest| guest.activate(Asid(1))),
        ("update", |guest| guest.launch_update(&update(PageType::Zero, 0, &[])).map(drop)),
        ("finish", |guest| guest.launch_finish(&LaunchFinish::default())),
        ("request", |guest| ask(guest, &report_request(1, 0, 0)).map(drop)),
    ];
    use FirmwareStatus::{Active, Inactive, InvalidGuestState};
    type Row<'a> = (&'a str, GuestContext, [Result<(), FirmwareStatus>; 5]);
    let states: [Row<'_>; 4] = [
        (
            "init",
            GuestContext::create(chip()),
            [Ok(()), Err(InvalidGuestState), Err(InvalidGuestState), Err(InvalidGuestState), Err(InvalidGuestState)],
        ),
        (
            "launch without an ASID",
            bound(),
            [Err(InvalidGuestState), Ok(()), Err(Inactive), Err(Inactive), Err(InvalidGuestState)],
        ),
        ("launch", launching(), [Err(InvalidGuestState), Err(Active), Ok(()), Ok(()), Err(InvalidGuestState)]),
        (
            "running",
            running(),
            [Err(InvalidGuestState), Err(Active), Err(InvalidGuestState), Err(InvalidGuestState), Ok(())],
        ),
    ];
    for (state, guest, expected) in states {
        for ((command, run), expected) in commands.iter().zip(expected) {
            let mut guest = guest.clone();
            let before = (guest.state(), guest.digest(), guest.asid());
            assert_eq!(run(&mut guest), expected, "{command} in {state}");
            if expected.is_err() {
                assert_eq!((guest.state(), guest.digest(), guest.asid()), before, "{command} in {state}");
            }
        }
    }
}

#[test]
fn asid_0_is_the_hosts() {
    let mut guest = GuestContext::create(chip());
    guest.launch_start(&START).unwrap();
    assert_eq!(guest.activate(Asid(0)), Err(FirmwareStatus::InvalidAsid));
}

#[test]
fn pages_hold_what_their_type_says() {
    let mut guest = launching();
    let cpuid = CpuidPage::build(&mut |leaf, _, _, _| match leaf {
        0x8000_0000 => CpuidResult { eax: 0x8000_001f, ..CpuidResult::ZERO },
        0x8000_001f => CpuidResult { eax: 0x1a, ..CpuidResult::ZERO },
        _ => CpuidResult::ZERO,
    });
    let cpuid = cpuid.unwrap().to_bytes();
    for kind in PageType::ALL {
        let contents = if kind == PageType::Cpuid { &cpuid[..] } else { &PAGE[..] };
        let before = guest.digest();
        let page = guest.launch_update(&update(kind, 0x5000, contents)).unwrap();
        assert_ne!(guest.digest(), before);
        match kind {
            PageType::Zero => assert_eq!(page, LaunchedPage::Zeros),
            PageType::Secrets => assert!(matches!(page, LaunchedPage::Written(_))),
            _ => assert_eq!(page, LaunchedPage::AsGiven),
        }
    }
    assert_eq!(PageType::new(0), None);
    assert!(PageType::ALL.iter().all(|&kind| PageType::new(kind as u8) == Some(kind)));
}

#[test]
fn pages_that_the_vm_has_put_into_the_guest_are_measured_as_they_are() {
    let (mut whole, mut parts) = (launching(), launching());
    whole.launch_update(&update(PageType::Normal, 0x3000, &PAGE)).unwrap();
    whole.launch_update(&update(PageType::Zero, 0x4000, &[])).unwrap();
    let permissions = [VmplPermissions::empty(); 3];
    for (gpa, page_type, bytes) in [(0x3000, PageType::Normal, Some(&PAGE[..])), (0x4000, PageType::Zero, None)] {
        parts.measure(&crate::snp::memory::LaunchedPage { gpa: Gpa::new(gpa), page_type, bytes, permissions }).unwrap();
    }
    assert_eq!(whole.digest(), parts.digest());
}

#[test]
fn a_large_page_is_measured_as_512_small_ones() {
    let contents: Vec<u8> = (0..PageSize::Size2M.bytes()).map(|n| (n / 4096) as u8).collect();
    for kind in [PageType::Normal, PageType::Zero, PageType::Unmeasured] {
        let (mut large, mut small) = (launching(), launching());
        let page = LaunchUpdate { size: PageSize::Size2M, ..update(kind, 0x20_0000, &contents) };
        large.launch_update(&page).unwrap();
        for (n, contents) in contents.chunks(PAGE_SIZE).enumerate() {
            small.launch_update(&update(kind, 0x20_0000 + (n * PAGE_SIZE) as u64, contents)).unwrap();
        }
        assert_eq!(large.digest(), small.digest());
    }
}

#[test]
fn pages_of_the_wrong_shape_are_refused_and_not_measured() {
    let mut guest = launching();
    let large = vec![0; PageSize::Size2M.bytes() as usize];
    let mut refused = |page: LaunchUpdate<'_>, status| {
        assert_eq!(guest.launch_update(&page), Err(status), "{:?} {:?} {:?}", page.kind, page.gpa, page.size);
        assert_eq!(guest.digest(), LaunchDigest::EMPTY);
    };
    for kind in [PageType::Vmsa, PageType::Secrets, PageType::Cpuid] {
        let page = LaunchUpdate { size: PageSize::Size2M, ..update(kind, 0x20_0000, &large) };
        refused(page, FirmwareStatus::InvalidPageSize);
    }
    let huge = LaunchUpdate { size: PageSize::Size1G, ..update(PageType::Zero, 0, &[]) };
    refused(huge, FirmwareStatus::InvalidPageSize);
    refused(update(PageType::Normal, 0x800, &PAGE), FirmwareStatus::InvalidAddress);
    let misaligned = LaunchUpdate { size: PageSize::Size2M, ..update(PageType::Zero, 0x1000, &[]) };
    refused(misaligned, FirmwareStatus::InvalidAddress);
    refused(update(PageType::Normal, 0, &PAGE[1..]), FirmwareStatus::InvalidLength);
    refused(update(PageType::Cpuid, 0, &PAGE), FirmwareStatus::InvalidParam);
}

#[test]
fn everything_about_a_page_is_in_the_digest_but_the_contents_of_unmeasured_ones() {
    let digest = |page: LaunchUpdate<'_>| {
        let mut guest = launching();
        guest.launch_update(&page).unwrap();
        guest.digest()
    };
    let other = [1; PAGE_SIZE];
    for kind in [PageType::Normal, PageType::Vmsa, PageType::Zero, PageType::Unmeasured, PageType::Secrets] {
        let page = update(kind, 0x1000, &PAGE);
        let measured = matches!(kind, PageType::Normal | PageType::Vmsa);
        assert_eq!(digest(page) != digest(LaunchUpdate { contents: &other, ..page }), measured, "{kind:?}");
        assert_ne!(digest(page), digest(LaunchUpdate { gpa: Gpa::new(0x2000), ..page }));
        for level in 0..3 {
            let mut permissions = [VmplPermissions::empty(); 3];
            permissions[level] = VmplPermissions::READ;
            assert_ne!(digest(page), digest(LaunchUpdate { permissions, ..page }));
        }
    }
    // The two TSC fields of a VMSA are measured as 0.
    let mut vmsa = PAGE;
    vmsa[0x2f0..0x300].fill(0);
    assert_eq!(digest(update(PageType::Vmsa, 0, &PAGE)), digest(update(PageType::Vmsa, 0, &vmsa)));
}

#[test]
fn an_identity_block_for_another_digest_ends_the_launch_unfinished() {
    let mut guest = launching();
    let id = SignedId { block: &[0x11; ID_BLOCK_BYTES], auth: &[0; PAGE_SIZE], author: AuthorKey::Absent };
    let finish = LaunchFinish { id: Some(id), ..LaunchFinish::default() };
    assert_eq!(guest.launch_finish(&finish), Err(FirmwareStatus::BadMeasurement));
    assert_eq!(guest.state(), GuestState::Launch);
}

#[test]
fn a_report_says_what_the_launch_was_and_is_signed_by_the_chip() {
    let mut guest = running();
    let response = ask(&mut guest, &report_request(1, 1, 2)).unwrap();
    assert_eq!((response.sequence, response.kind, response.vmpck), (2, kind::REPORT_RESPONSE, 1));
    assert_eq!(status(&response), 0);
    assert_eq!(response.payload[4..8], (REPORT_BYTES as u32).to_le_bytes());
    let report = &response.payload[0x20..];
    assert_eq!(report.len(), REPORT_BYTES);
    assert_eq!(report[0x30], 2);
    assert_eq!(report[0x50..0x90], [0x77; 64]);
    assert_eq!(report[0x90..0xc0], *guest.digest().bytes());
    assert_eq!(report[0xc0..0xe0], [5; 32]);
    let scalar = |at: usize| -> [u8; 48] {
        let mut scalar: [u8; 48] = report[at..at + 48].try_into().unwrap();
        scalar.reverse();
        scalar
    };
    let signature = Signature::from_scalars(scalar(0x2a0), scalar(0x2a0 + 72)).unwrap();
    chip().verifying_key().verify(&report[..0x2a0], &signature).unwrap();
    assert!(chip().verifying_key().verify(&report[1..0x2a0], &signature).is_err());
}

#[test]
fn a_sequence_number_is_used_once_and_none_is_left_out() {
    let mut guest = running();
    for (sequence, expected) in [
        (0, Err(FirmwareStatus::AeadOverflow)),
        (2, Err(FirmwareStatus::AeadOverflow)),
        (1, Ok(2)),
        (1, Err(FirmwareStatus::AeadOverflow)),
        (2, Err(FirmwareStatus::AeadOverflow)),
        (3, Ok(4)),
    ] {
        let response = ask(&mut guest, &report_request(sequence, 0, 0));
        assert_eq!(response.map(|response| response.sequence), expected, "{sequence}");
    }
    // Each key has its own.
    assert!(ask(&mut guest, &report_request(1, 3, 3)).is_ok());
}

#[test]
fn the_last_sequence_number_is_not_used_up() {
    let mut guest = running();
    guest.set_message_count(0, u64::MAX - 1);
    assert_eq!(ask(&mut guest, &report_request(u64::MAX, 0, 0)), Err(FirmwareStatus::AeadOverflow));
    guest.set_message_count(0, u64::MAX - 3);
    assert!(ask(&mut guest, &report_request(u64::MAX - 2, 0, 0)).is_ok());
}

#[test]
fn a_report_for_a_higher_level_than_the_keys_is_refused_in_the_response() {
    let mut guest = running();
    for (vmpck, vmpl, refused) in [(1, 0, true), (1, 1, false), (0, 3, false), (0, 4, true)] {
        let sequence = guest.message_count(vmpck) + 1;
        let response = ask(&mut guest, &report_request(sequence, vmpck, vmpl)).unwrap();
        let expected = if refused { FirmwareStatus::InvalidParam.code() } else { 0 };
        assert_eq!(status(&response), expected, "{vmpck} {vmpl}");
        assert_eq!(response.payload[0x20..].iter().all(|&byte| byte == 0), refused);
    }
}

#[test]
fn reserved_bits_absent_keys_and_short_payloads_are_refused_in_the_response() {
    let mut guest = running();
    let mut sequence = 1;
    let mut answer = |message: Message| {
        let response = ask(&mut guest, &Message { sequence, ..message }).unwrap();
        sequence += 2;
        status(&response)
    };
    let changed = |at: usize, value: u8| {
        let mut message = report_request(0, 0, 0);
        message.payload[at] = value;
        message
    };
    let (invalid, no_key) = (FirmwareStatus::InvalidParam.code(), FirmwareStatus::InvalidKey.code());
    assert_eq!(answer(changed(0x48, 1)), invalid);
    assert_eq!(answer(changed(0x44, 4)), invalid);
    assert_eq!(answer(changed(0x44, 1)), 0);
    assert_eq!(answer(changed(0x44, 2)), no_key);
    assert_eq!(answer(changed(0x44, 3)), no_key);
    assert_eq!(answer(Message { payload: vec![0; 0x50], ..report_request(0, 0, 0) }), invalid);
    assert_eq!(answer(Message { payload: vec![0; 0x10], ..key_request(0, |_| {}) }), invalid);
    assert_eq!(answer(key_request(0, |request| request[4] = 1)), invalid);
    assert_eq!(answer(key_request(0, |request| request[0] = 2 << 1)), no_key);
    assert_eq!(answer(key_request(0, |request| request[8] = 1 << 6)), invalid);
    assert_eq!(answer(key_request(0, |request| request[0x10] = 4)), invalid);
    // A guest version or a TCB newer than the real one.
    assert_eq!(answer(key_request(0, |request| (request[8], request[0x14]) = (1 << 4, 1))), invalid);
    assert_eq!(answer(key_request(0, |request| (request[8], request[0x1f]) = (1 << 5, 2))), invalid);
    assert_eq!(answer(key_request(0, |request| (request[8], request[0x1a]) = (1 << 5, 1))), invalid);
}

#[test]
fn a_key_that_the_hypervisor_disabled_signs_nothing() {
    let mut guest = launching();
    guest.launch_finish(&LaunchFinish { vcek: VcekUse::Disabled, ..LaunchFinish::default() }).unwrap();
    let response = ask(&mut guest, &report_request(1, 0, 0)).unwrap();
    assert_eq!(status(&response), FirmwareStatus::InvalidKey.code());
    // The guest's own root key is still there.
    let response = ask(&mut guest, &key_request(3, |request| request[0] = 1)).unwrap();
    assert_eq!(status(&response), 0);
}

#[test]
fn derived_keys_depend_on_what_is_chosen_and_on_nothing_else() {
    let key = |start: LaunchStart, host_data: u8, change: fn(&mut [u8])| -> [u8; 32] {
        let mut guest = GuestContext::create(chip());
        guest.launch_start(&start).unwrap();
        guest.activate(Asid(1)).unwrap();
        guest.launch_update(&update(PageType::Normal, u64::from(host_data) << 12, &PAGE)).unwrap();
        guest.launch_finish(&LaunchFinish { host_data: [1; 32], ..LaunchFinish::default() }).unwrap();
        // The keys of this guest, which another number makes others.
        let keys = *guest.running_vmpcks().unwrap();
        let page = key_request(1, change).seal(&keys[0]).unwrap();
        let response = Message::open(&guest.guest_request(&page).unwrap(), &keys).unwrap();
        assert_eq!(status(&response), 0);
        *response.payload[0x20..].first_chunk().unwrap()
    };
    let plain = key(START, 1, |_| {});
    assert_eq!(plain, key(START, 2, |_| {}), "the measurement was not chosen");
    assert_eq!(plain, key(LaunchStart { number: 2, ..START }, 1, |_| {}), "the chip's root is the same for all guests");
    let measured: fn(&mut [u8]) = |request| request[8] = 1 << 3;
    assert_ne!(key(START, 1, measured), key(START, 2, measured));
    let own: fn(&mut [u8]) = |request| request[0] = 1;
    assert_ne!(key(START, 1, own), key(LaunchStart { number: 2, ..START }, 1, own));
    let mut all = vec![plain, key(START, 1, measured), key(START, 1, own)];
    all.push(key(START, 1, |request| request[0x10] = 1));
    all.push(key(START, 1, |request| request[8] = 1));
    all.push(key(START, 1, |request| request[8] = 1 << 5));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 6);
}

#[test]
fn messages_of_an_unknown_kind_or_version_get_no_response_and_no_number() {
    let mut guest = running();
    for known in [0, 1, 2, 4, 6, 7, 17, 255] {
        let message = Message { kind: known, ..report_request(1, 0, 0) };
        assert_eq!(ask(&mut guest, &message), Err(FirmwareStatus::InvalidParam), "{known}");
    }
    for version in [0, 2] {
        let message = Message { version, ..report_request(1, 0, 0) };
        assert_eq!(ask(&mut guest, &message), Err(FirmwareStatus::InvalidParam));
    }
    assert!(ask(&mut guest, &report_request(1, 0, 0)).is_ok());
}

/// Shared memory from 0 on.
struct Shared(Vec<u8>);

impl GhcbMemory for Shared {
    fn read(&mut self, gpa: Gpa, into: &mut [u8]) -> Result<(), GhcbUnreachable> {
        let start = usize::try_from(gpa.raw()).map_err(|_| GhcbUnreachable)?;
        let bytes = self.0.get(start..start.saturating_add(into.len())).ok_or(GhcbUnreachable)?;
        into.copy_from_slice(bytes);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, from: &[u8]) -> Result<(), GhcbUnreachable> {
        let start = usize::try_from(gpa.raw()).map_err(|_| GhcbUnreachable)?;
        let bytes = self.0.get_mut(start..start.saturating_add(from.len())).ok_or(GhcbUnreachable)?;
        bytes.copy_from_slice(from);
        Ok(())
    }
}

fn request(certificates: Option<CertificateArea>) -> GuestRequest {
    GuestRequest { request: Gpa::new(0x1000), response: Gpa::new(0x2000), certificates }
}

#[test]
fn a_request_in_memory_is_answered_in_memory() {
    let mut guest = running();
    let mut memory = Shared(vec![0xff; 0x8000]);
    memory.0[0x1000..0x2000].copy_from_slice(&report_request(1, 0, 0).seal(&guest_keys()[0]).unwrap()[..]);
    assert_eq!(guest.serve(&request(None), &[], &mut memory), GuestRequestStatus::Firmware(0));
    let response = Message::open(memory.0[0x2000..].first_chunk().unwrap(), &guest_keys()).unwrap();
    assert_eq!(status(&response), 0);
    // The same message again is a repetition, and the response page stays.
    let before = memory.0.clone();
    let status = GuestRequestStatus::Firmware(FirmwareStatus::AeadOverflow.code());
    assert_eq!(guest.serve(&request(None), &[], &mut memory), status);
    assert_eq!(memory.0, before);
}

#[test]
fn pages_that_are_not_shared_are_an_address_the_firmware_refuses() {
    let mut guest = running();
    let status = GuestRequestStatus::Firmware(FirmwareStatus::InvalidAddress.code());
    assert_eq!(guest.serve(&request(None), &[], &mut Shared(vec![0; 0x1800])), status);
}

#[test]
fn certificates_come_with_a_report_if_there_is_room() {
    let mut guest = running();
    let mut memory = Shared(vec![0xff; 0x8000]);
    let keys = guest_keys();
    let mut serve = |sequence, message: &Message, area: (u64, u64), certificates: &[u8]| {
        let page = Message { sequence, ..message.clone() }.seal(&keys[0]).unwrap();
        memory.0[0x1000..0x2000].copy_from_slice(&page[..]);
        memory.0[0x4000..].fill(0xff);
        let area = CertificateArea { gpa: Gpa::new(area.0), pages: area.1 };
        let status = guest.serve(&request(Some(area)), certificates, &mut memory);
        (status, memory.0[0x4000..0x6000].to_vec())
    };
    let done = GuestRequestStatus::Firmware(0);
    let report = report_request(0, 0, 0);
    let (status, area) = serve(1, &report, (0x4000, 1), &[]);
    assert_eq!((status, &area[..25]), (done, &[&[0; 24][..], &[0xff]].concat()[..]));
    assert_eq!(serve(3, &report, (0x4000, 0), &[]).0, done);
    assert_eq!(serve(5, &report, (0x4008, 1), &[]).0, GuestRequestStatus::CertificatesMisaligned);
    let certificates = vec![7; 0x1001];
    assert_eq!(serve(5, &report, (0x4000, 1), &certificates).0, GuestRequestStatus::CertificatesNeed { pages: 2 });
    let (status, area) = serve(5, &report, (0x4000, 2), &certificates);
    assert_eq!((status, &area[..0x1001]), (done, &certificates[..]));
    // Other messages have none.
    let (status, area) = serve(7, &key_request(0, |_| {}), (0x4008, 0), &certificates);
    assert_eq!((status, area[0]), (done, 0xff));
}

proptest! {
    #[test]
    fn no_page_makes_the_firmware_fail(bytes in proptest::collection::vec(any::<u8>(), PAGE_SIZE), plausible: bool) {
        let mut page: [u8; PAGE_SIZE] = bytes.try_into().unwrap();
        if plausible {
            page[0x30..0x38].copy_from_slice(&[1, 1, 0x60, 0, 5, 1, 0x60, 0]);
            page[0x3c] &= 3;
        }
        let mut guest = running();
        let refused = guest.guest_request(&page).unwrap_err();
        let expected = if plausible { FirmwareStatus::BadMeasurement } else { refused };
        prop_assert_eq!(refused, expected);
        let _ = CpuidPage::from_bytes(&page);
    }

    #[test]
    fn every_authentic_payload_gets_a_response(kind in 3u8..=5, len in 1usize..=MESSAGE_PAYLOAD_MAX / 16, seed: [u8; 32], zeros: bool) {
        let payload: Vec<u8> = (0..len * 16).map(|n| if zeros && n >= 64 { 0 } else { seed[n % 32] }).collect();
        let mut guest = running();
        let response = ask(&mut guest, &Message { sequence: 1, kind, version: 1, vmpck: 0, payload });
        prop_assert_eq!(response.is_ok(), kind != 4);
    }
}
