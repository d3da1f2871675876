//! Administrative commands (NVM Express 1.4, section 5), features, and events.

use std::collections::{BTreeMap, VecDeque};

use super::command::{Command, Outcome, Status};
use super::identify::{self, NAMESPACE};
use super::prp::{self, PAGE};
use super::queue::{CompletionQueue, DoorbellError, SubmissionQueue};
use super::{MAX_TRANSFER, Nvme, regs};
use crate::bus::DmaPort;

const DELETE_SUBMISSION: u8 = 0x00;
const CREATE_SUBMISSION: u8 = 0x01;
const GET_LOG_PAGE: u8 = 0x02;
const DELETE_COMPLETION: u8 = 0x04;
const CREATE_COMPLETION: u8 = 0x05;
const IDENTIFY: u8 = 0x06;
const ABORT: u8 = 0x08;
const SET_FEATURES: u8 = 0x09;
const GET_FEATURES: u8 = 0x0a;
const EVENT_REQUEST: u8 = 0x0c;

/// Feature identifiers.
mod feature {
    /// Number of Queues.
    pub const QUEUES: u8 = 0x07;
    /// Those that hold what they are set to: arbitration, power management, temperature threshold, error recovery,
    /// interrupt coalescing, interrupt vector configuration, write atomicity, asynchronous events.
    pub const KEPT: [u8; 8] = [0x01, 0x02, 0x04, 0x05, 0x08, 0x09, 0x0a, 0x0b];
}

/// Log page identifiers.
mod log {
    /// Errors.
    pub const ERROR: u8 = 0x01;
    /// SMART and health.
    pub const HEALTH: u8 = 0x02;
    /// Firmware slots.
    pub const FIRMWARE: u8 = 0x03;
}

/// Temperature that the controller reports, in kelvin.
const TEMPERATURE: u16 = 300;

/// The administrative state that a controller reset clears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Commands that wait for an event.
    requests: VecDeque<u16>,
    /// The event that waits for a request: dword 0 of its completion.
    event: Option<u32>,
    /// An error event was told, and the log not read since: no other is told.
    error_told: bool,
    features: BTreeMap<u8, u32>,
}

impl Admin {
    /// A doorbell write was wrong: an error event, unless one waits for the driver already.
    pub fn doorbell_error(&mut self, what: DoorbellError) {
        let info = match what {
            DoorbellError::NoQueue => 0,
            DoorbellError::Value => 1,
        };
        if !self.error_told {
            self.event.get_or_insert(u32::from(log::ERROR) << 16 | info << 8);
        }
    }

    /// A request and the event that completes it.
    pub fn next_event(&mut self) -> Option<(u16, u32)> {
        let event = self.event?;
        let request = self.requests.pop_front()?;
        self.event = None;
        self.error_told = true;
        Some((request, event))
    }
}

impl Nvme {
    /// Carries out a command of the administrative queue. `None`: it completes when there is an event.
    pub(super) fn administer(&mut self, command: &Command, memory: &mut dyn DmaPort) -> Option<Outcome> {
        if command.fused_or_sgl() {
            return Some(Err(Status::InvalidField));
        }
        Some(match command.opcode() {
            DELETE_SUBMISSION => self.delete_submission(command),
            CREATE_SUBMISSION => self.create_submission(command),
            GET_LOG_PAGE => self.log_page(command, memory),
            DELETE_COMPLETION => self.delete_completion(command),
            CREATE_COMPLETION => self.create_completion(command),
            IDENTIFY => self.identify(command, memory),
            // Bit 0: not aborted. A command that could be is complete before this one is fetched.
            ABORT => Ok(1),
            SET_FEATURES => self.set_feature(command),
            GET_FEATURES => self.get_feature(command),
            EVENT_REQUEST if self.admin.requests.len() >= identify::EVENT_REQUESTS => Err(Status::TooManyEventRequests),
            EVENT_REQUEST => {
                self.admin.requests.push_back(command.id());
                return None;
            }
            _ => Err(Status::InvalidOpcode),
        })
    }

    fn identify(&self, command: &Command, memory: &mut dyn DmaPort) -> Outcome {
        let namespace = command.namespace();
        let page = match command.dword(10) as u8 {
            0x00 if namespace == NAMESPACE || namespace == u32::MAX => identify::namespace(&self.disk),
            0x01 => identify::controller(&self.disk, self.number),
            0x02 if namespace < 0xffff_fffe => identify::active(namespace),
            0x03 if namespace == NAMESPACE => identify::descriptors(self.number),
            0x00 | 0x02 | 0x03 => return Err(Status::InvalidNamespace),
            _ => return Err(Status::InvalidField),
        };
        let pieces = prp::pieces(command, PAGE, memory)?;
        prp::scatter(&pieces, &page[..], memory)?;
        Ok(0)
    }

    fn log_page(&mut self, command: &Command, memory: &mut dyn DmaPort) -> Outcome {
        let (dword10, dword11) = (command.dword(10), command.dword(11));
        let id = dword10 as u8;
        let len = (u64::from(dword10 >> 16) | u64::from(dword11 & 0xffff) << 16).wrapping_add(1) * 4;
        // LPA says that there are no offsets.
        if len > MAX_TRANSFER || command.dword(12) != 0 || command.dword(13) != 0 {
            return Err(Status::InvalidField);
        }
        let mut page = vec![0; len.max(512) as usize];
        match id {
            log::ERROR => {}
            log::HEALTH => {
                page[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
                // Available spare and its threshold, in percent.
                page[3..5].copy_from_slice(&[100, 10]);
            }
            log::FIRMWARE => {
                page[0] = 1;
                page[8..16].copy_from_slice(b"1       ");
            }
            _ => return Err(Status::InvalidLogPage),
        }
        let pieces = prp::pieces(command, len, memory)?;
        prp::scatter(&pieces, &page[..len as usize], memory)?;
        if id == log::ERROR && dword10 >> 15 & 1 == 0 {
            self.admin.error_told = false;
        }
        Ok(0)
    }

    fn set_feature(&mut self, command: &Command) -> Outcome {
        match command.dword(10) as u8 {
            feature::QUEUES if command.dword(11) & 0xffff == 0xffff || command.dword(11) >> 16 == 0xffff => {
                Err(Status::InvalidField)
            }
            feature::QUEUES => Ok(identify::granted_queues()),
            id if feature::KEPT.contains(&id) => {
                self.admin.features.insert(id, command.dword(11));
                Ok(0)
            }
            _ => Err(Status::InvalidField),
        }
    }

    fn get_feature(&self, command: &Command) -> Outcome {
        match command.dword(10) as u8 {
            feature::QUEUES => Ok(identify::granted_queues()),
            id if feature::KEPT.contains(&id) => Ok(self.admin.features.get(&id).copied().unwrap_or(0)),
            _ => Err(Status::InvalidField),
        }
    }

    /// Identifier and length of a queue to be created, the base being page-aligned and contiguous.
    fn new_queue(command: &Command, taken: impl FnOnce(u16) -> bool) -> Result<(u16, u32), Status> {
        let (id, entries) = (command.dword(10) as u16, (command.dword(10) >> 16) + 1);
        if id == 0 || id > regs::IO_QUEUES || taken(id) {
            return Err(Status::InvalidQueue);
        }
        if !(2..=regs::MAX_ENTRIES).contains(&entries) {
            return Err(Status::InvalidQueueSize);
        }
        if command.dword(11) & 1 == 0 {
            return Err(Status::InvalidField);
        }
        if !command.prp1().raw().is_multiple_of(PAGE) {
            return Err(Status::InvalidPrpOffset);
        }
        Ok((id, entries))
    }

    fn create_completion(&mut self, command: &Command) -> Outcome {
        let (id, entries) = Nvme::new_queue(command, |id| self.queues.completion.contains_key(&id))?;
        let vector = (command.dword(11) >> 16) as u16;
        if vector >= self.msix.vectors() {
            return Err(Status::InvalidVector);
        }
        let vector = (command.dword(11) & 2 != 0).then_some(vector);
        self.queues.completion.insert(id, CompletionQueue::new(command.prp1(), entries, vector));
        Ok(0)
    }

    fn create_submission(&mut self, command: &Command) -> Outcome {
        let target = (command.dword(11) >> 16) as u16;
        if target == 0 || !self.queues.completion.contains_key(&target) {
            return Err(if target > regs::IO_QUEUES { Status::InvalidQueue } else { Status::InvalidCompletionQueue });
        }
        let (id, entries) = Nvme::new_queue(command, |id| self.queues.submission.contains_key(&id))?;
        self.queues.submission.insert(id, SubmissionQueue::new(command.prp1(), entries, target));
        Ok(0)
    }

    fn delete_submission(&mut self, command: &Command) -> Outcome {
        let id = command.dword(10) as u16;
        // What it still held is dropped with it.
        match id != 0 && self.queues.submission.remove(&id).is_some() {
            true => Ok(0),
            false => Err(Status::InvalidQueue),
        }
    }

    fn delete_completion(&mut self, command: &Command) -> Outcome {
        let id = command.dword(10) as u16;
        if id == 0 || !self.queues.completion.contains_key(&id) {
            return Err(Status::InvalidQueue);
        }
        if self.queues.submission.values().any(|queue| queue.completion == id) {
            return Err(Status::InvalidQueueDeletion);
        }
        self.queues.completion.remove(&id);
        Ok(0)
    }
}
