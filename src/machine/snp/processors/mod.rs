//! Processors that an SNP guest creates, stops and lets wait.
//!
//! GHCB specification, "SNP AP Creation" and "AP Reset Hold"; Linux `arch/x86/kvm/svm/sev.c:sev_snp_ap_creation`,
//! `sev_snp_init_protected_guest_state`, `sev_vcpu_deliver_sipi_vector`. What a processor is told is kept by its
//! [`Processor`](crate::machine::seat::Processor); here it takes effect, when the processor is about to run.
//!
//! Always true: a processor enters only a save area that was looked for after the guest named it, and a reset hold ends
//! with one answer, or with none when the guest has given the processor another state meanwhile.

use hypervisor::VcpuId;
use hypervisor::snp::ghcb::{ApCreate, GhcbReply, SnpAction};

use super::vmgexit::Shared;
use crate::machine::Machine;
use crate::machine::seat::{HoldOver, Message, SaveArea};

impl Machine {
    /// A state for a processor, which it gets now or at its next INIT.
    pub(super) fn create_processor(&mut self, create: &ApCreate) -> GhcbReply<'static> {
        let (vmsa, start) = (create.vmsa.frame(), create.start);
        match self.vm.snp_save_area(vmsa, &self.lens.task()) {
            Some(_) => self.tell_processor(create.apic_id, Message::Create { vmsa, start }),
            None => GhcbReply::Refused,
        }
    }

    /// A processor is no longer to run.
    pub(super) fn destroy_processor(&mut self, apic_id: u32) -> GhcbReply<'static> {
        self.tell_processor(apic_id, Message::Destroy)
    }

    fn tell_processor(&mut self, apic_id: u32, message: Message) -> GhcbReply<'static> {
        match self.vcpus.get_mut(apic_id as usize) {
            Some(processor) => {
                processor.tell(message);
                GhcbReply::Done
            }
            None => GhcbReply::Refused,
        }
    }

    /// Before processor `n` runs: it takes the state that its guest has made for it, or the answer to its reset hold.
    pub(in crate::machine) fn follow_guest(&mut self, n: usize) {
        let Some(snp) = &mut self.snp else { return };
        let processor = &mut self.vcpus[n];
        if let SaveArea::Next(vmsa) = processor.save_area {
            snp.vcpus[n].abandon();
            processor.save_area = match self.vm.snp_use_save_area(VcpuId(n as u16), vmsa, &self.lens.task()) {
                Ok(Some(page)) => {
                    processor.vcpu.set_vmsa(page.base());
                    SaveArea::Same
                }
                // The guest took the page away again.
                Ok(None) | Err(_) => SaveArea::None,
            };
        }
        if let Some(how) = processor.hold_over.take() {
            let reply = match how {
                HoldOver::Started => GhcbReply::Done,
                HoldOver::Woken => GhcbReply::Refused,
            };
            let mut memory = Shared { vm: &self.vm, task: self.lens.task() };
            // An error is a page that the guest took away meanwhile: it goes on without the answer.
            if let Ok(SnpAction::Resume { ghcb_msr: Some(value) }) = snp.vcpus[n].reply(&mut memory, reply) {
                processor.vcpu.set_ghcb(value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
