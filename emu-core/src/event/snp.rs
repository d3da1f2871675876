//! The part of the vocabulary that SEV-SNP has: the reverse map, what a guest does to it, and what guest and hypervisor say
//! to each other. [`super::list`] declares it with everything else.

/// Gives what stands in `with` and these events to the macro of that name.
macro_rules! with_snp_events {
    ($with:ident! { $($others:tt)* }) => {
        $with! {
            $($others)*

            /// RMPUPDATE: an entry of the reverse map has another owner.
            RmpUpdate: Bifold "rmpupdate" in Snp {
                /// First system frame.
                sfn: Sfn,
                /// Size of the entry.
                size: PageSize,
                /// Whose it is to be.
                owner: RmpOwner,
                /// The guest frame it stands for; 0 for the hypervisor's.
                gfn: Gfn,
                /// The guest; 0 for the hypervisor's.
                asid: u32,
                /// What the instruction returns in EAX.
                result: u32,
            }

            /// PSMASH: a 2M entry becomes 512.
            Psmash: Bifold "psmash" in Snp {
                /// First system frame.
                sfn: Sfn,
                /// What the instruction returns in EAX.
                result: u32,
            }

            /// `SNP_PAGE_UNSMASH`: 512 entries become one.
            Unsmash: Bifold "snp_page_unsmash" in Snp {
                /// First system frame.
                sfn: Sfn,
                /// The firmware's status.
                status: u32,
            }

            /// A nested fault because of the reverse map was looked at (`sev_handle_rmp_fault`).
            RmpFault: Linux "kvm_rmp_fault" in Snp {
                /// Where.
                gpa: Gpa,
                /// The frame behind it.
                sfn: Sfn,
                /// The error code.
                error_code: NpfCode,
                /// Size of the frame's entry.
                rmp_level: PageSize,
                /// What PSMASH returned; 0 where there was none.
                psmash_ret: u32,
            }

            /// PVALIDATE of the guest, told when the processor leaves it, with the time and the place of the instruction.
            Pvalidate: Bifold "pvalidate" in Snp {
                /// The operand.
                gva: Gva,
                /// Its guest frame; 0 where the operands are refused before they are translated.
                gfn: Gfn,
                /// The frame behind it; 0 likewise.
                sfn: Sfn,
                /// The size asked for.
                size: PageSize,
                /// What the page becomes.
                to: Validity,
                /// What the instruction returns in EAX.
                result: u32,
                /// CF: 1 where there was nothing to change.
                carry: u8,
            }

            /// RMPADJUST of the guest, told likewise.
            RmpAdjust: Bifold "rmpadjust" in Snp {
                /// The operand.
                gva: Gva,
                /// Its guest frame; 0 where the operands are refused before they are translated.
                gfn: Gfn,
                /// RCX: 0 for 4K, 1 for 2M.
                rcx: Bits,
                /// RDX: the level, its permissions, and whether the page is a VMSA.
                rdx: Bits,
                /// What the instruction returns in EAX.
                result: u32,
            }

            /// #VC in the guest, told when the processor leaves it, with the time and the place of the instruction that caused it.
            VmmCommunication: Bifold "vmm_communication" in Snp {
                /// The error code: the exit that the exception stands for.
                exit_code: Bits,
            }

            /// The guest asked for pages to become private or shared (`KVM_HC_MAP_GPA_RANGE`).
            PageStateChange: Bifold "kvm_page_state_change" in Snp {
                /// First guest frame.
                gfn: Gfn,
                /// How many.
                nr_pages: u64,
                /// To what.
                to: Sharing,
                /// The size the guest spoke of.
                size: PageSize,
                /// Zero or a negative errno.
                errno: i32,
            }

            /// A page of the launch image is the guest's (`SNP_LAUNCH_UPDATE`).
            LaunchUpdate: Bifold "snp_launch_update" in Snp {
                /// Its guest frame.
                gfn: Gfn,
                /// The frame behind it.
                sfn: Sfn,
                /// Its size.
                size: PageSize,
                /// `PAGE_TYPE` of the command.
                page_type: u8,
                /// The firmware's status.
                status: u32,
            }

            /// Frames that cannot be returned to the host are given up (`snp_leak_pages`).
            FramesLeaked: Bifold "snp_leak_pages" in Snp {
                /// The first.
                sfn: Sfn,
                /// How many.
                nr_frames: u64,
            }

            /// VMGEXIT with a GHCB.
            VmgexitEnter: Linux "kvm_vmgexit_enter" in Snp {
                /// `SW_EXITCODE`.
                exit_code: Bits,
                /// `SW_EXITINFO1`.
                info1: Bits,
                /// `SW_EXITINFO2`.
                info2: Bits,
            }

            /// The same GHCB as it goes back.
            VmgexitExit: Linux "kvm_vmgexit_exit" in Snp {
                /// `SW_EXITCODE`.
                exit_code: Bits,
                /// `SW_EXITINFO1`.
                info1: Bits,
                /// `SW_EXITINFO2`.
                info2: Bits,
            }

            /// VMGEXIT with a request in the MSR.
            VmgexitMsrProtocolEnter: Linux "kvm_vmgexit_msr_protocol_enter" in Snp {
                /// The MSR.
                ghcb_gpa: Bits,
            }

            /// Its answer.
            VmgexitMsrProtocolExit: Linux "kvm_vmgexit_msr_protocol_exit" in Snp {
                /// The MSR.
                ghcb_gpa: Bits,
                /// 1 where the guest goes on, 0 where the VMM is asked, a negative errno where the VM ends.
                result: i32,
            }
        }
    };
}

pub(super) use with_snp_events;
