//! A processor's place in the machine.
//!
//! Where processors take turns, each sits in its [`Seat`] all the time. Where they run at the same time, a processor is
//! away from its seat while it executes, and whoever has a [`Message`] for it leaves it there.

use core::ops::{Deref, DerefMut};

use cpu::Vcpu;
use emu_core::Gfn;
use hypervisor::snp::ghcb::ApStart;

/// What a processor does when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    Running,
    /// HLT: until an interrupt.
    Halted,
    /// After INIT: until a start-up message.
    WaitForSipi,
    /// An encrypted guest's own wait for INIT and a start-up message (`KVM_MP_STATE_AP_RESET_HOLD`): it has asked by
    /// VMGEXIT, and gets an answer when it ends.
    ResetHold,
}

/// What an encrypted guest has its processor run from. Its hypervisor cannot make a state: INIT and start-up messages only
/// choose among those that the guest has made (`sev_snp_init_protected_guest_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SaveArea {
    /// What it has run from until now. Processors of other guests have no other.
    Same,
    /// What is in this frame, which was not looked for yet.
    Next(Gfn),
    /// Nothing, until the guest makes one.
    None,
}

/// How a reset hold ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldOver {
    /// By INIT and a start-up message.
    Started,
    /// By something else.
    Woken,
}

/// What others tell a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Init,
    Sipi {
        vector: u8,
    },
    Nmi,
    /// An encrypted guest has made a state for the processor to run from, in this frame.
    Create {
        vmsa: Gfn,
        start: ApStart,
    },
    /// An encrypted guest wants it to end.
    Destroy,
    /// The board put something else at this frame.
    Forget {
        gfn: Gfn,
    },
}

/// The place of a processor, which may be away.
pub(super) struct Seat(Option<Box<Vcpu>>);

impl Seat {
    /// The processor, if it is here.
    pub(super) fn present(&mut self) -> Option<&mut Vcpu> {
        self.0.as_deref_mut()
    }
    /// Takes the processor away to run it.
    pub(super) fn leave(&mut self) -> Option<Box<Vcpu>> {
        self.0.take()
    }
    /// Puts it back.
    pub(super) fn take(&mut self, vcpu: Box<Vcpu>) {
        self.0 = Some(vcpu);
    }
}

const AWAY: &str = "only a processor's own thread takes it away, and only while nobody acts for it";

impl Deref for Seat {
    type Target = Vcpu;
    fn deref(&self) -> &Vcpu {
        self.0.as_deref().expect(AWAY)
    }
}

impl DerefMut for Seat {
    fn deref_mut(&mut self) -> &mut Vcpu {
        self.0.as_deref_mut().expect(AWAY)
    }
}

/// A processor and what the machine knows of it.
pub(super) struct Processor {
    pub(super) vcpu: Seat,
    pub(super) activity: Activity,
    pub(super) save_area: SaveArea,
    /// Where its state is from the next INIT on.
    at_init: Option<Gfn>,
    /// The end of a reset hold that the guest was not told of yet.
    pub(super) hold_over: Option<HoldOver>,
    /// Units of time it has run.
    pub(super) retired: u64,
    /// What it was told while it was away, in order.
    mail: Vec<Message>,
    bootstrap: bool,
    /// It is in a reset hold, or was when INIT came.
    holds: bool,
}

impl Processor {
    /// The first processor is the one that boots.
    pub(super) fn new(vcpu: Vcpu, activity: Activity) -> Processor {
        Processor {
            vcpu: Seat(Some(Box::new(vcpu))),
            activity,
            save_area: SaveArea::Same,
            at_init: None,
            hold_over: None,
            retired: 0,
            mail: Vec::new(),
            bootstrap: activity == Activity::Running,
            holds: false,
        }
    }

    /// Whether it executes when its turn comes.
    pub(super) fn runs(&self) -> bool {
        self.activity == Activity::Running && self.save_area == SaveArea::Same
    }

    /// Delivers a message, now or when the processor is back.
    pub(super) fn tell(&mut self, message: Message) {
        let Some(vcpu) = self.vcpu.present() else {
            self.mail.push(message);
            return;
        };
        let encrypted = vcpu.sev_guest().is_some();
        match message {
            Message::Init if encrypted => self.init_encrypted(),
            Message::Init => {
                vcpu.init();
                self.wait_for_sipi();
            }
            Message::Sipi { vector } => match self.activity {
                Activity::WaitForSipi => {
                    if !encrypted {
                        vcpu.start_at(vector);
                    }
                    self.activity = Activity::Running;
                    self.end_hold(HoldOver::Started);
                }
                Activity::ResetHold => self.wake(),
                Activity::Running | Activity::Halted => {}
            },
            Message::Nmi => {
                vcpu.inject_nmi();
                self.wake();
            }
            Message::Create { vmsa, start: ApStart::OnInit } => self.at_init = Some(vmsa),
            Message::Create { vmsa, start: ApStart::Now } => {
                self.take_state(SaveArea::Next(vmsa));
                self.activity = Activity::Running;
            }
            Message::Destroy => {
                self.take_state(SaveArea::None);
                self.activity = Activity::WaitForSipi;
            }
            Message::Forget { gfn } => vcpu.mmu().flush_gpa_range(gfn, 1),
        }
    }

    /// The bootstrap processor goes to the reset vector, the others wait to be started.
    fn wait_for_sipi(&mut self) {
        self.activity = if self.bootstrap { Activity::Running } else { Activity::WaitForSipi };
    }

    /// INIT cannot reset what it cannot see: the processor stops where it is, or gets the state that its guest has made
    /// for this moment.
    fn init_encrypted(&mut self) {
        if let Some(vmsa) = self.at_init {
            self.take_state(SaveArea::Next(vmsa));
        }
        self.wait_for_sipi();
        if self.activity == Activity::Running {
            self.end_hold(HoldOver::Woken);
        }
    }

    /// Another state, or none: what the old one waited for does not come.
    fn take_state(&mut self, state: SaveArea) {
        (self.save_area, self.at_init, self.holds, self.hold_over) = (state, None, false, None);
    }

    /// The guest has asked to wait for INIT and a start-up message.
    pub(super) fn hold(&mut self) {
        (self.activity, self.holds) = (Activity::ResetHold, true);
    }

    /// Something has come that ends HLT and a reset hold.
    pub(super) fn wake(&mut self) {
        if matches!(self.activity, Activity::Halted | Activity::ResetHold) {
            self.activity = Activity::Running;
            self.end_hold(HoldOver::Woken);
        }
    }

    fn end_hold(&mut self, how: HoldOver) {
        if core::mem::take(&mut self.holds) {
            self.hold_over = Some(how);
        }
    }

    /// The processor is back and hears what it was told meanwhile.
    pub(super) fn read_mail(&mut self) {
        for message in core::mem::take(&mut self.mail) {
            self.tell(message);
        }
    }
}
