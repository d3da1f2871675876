//! A processor's place in the machine.
//!
//! Where processors take turns, each sits in its [`Seat`] all the time. Where they run at the same time, a processor is
//! away from its seat while it executes, and whoever has a [`Message`] for it leaves it there.

use core::ops::{Deref, DerefMut};

use cpu::Vcpu;
use emu_core::{Gfn, Spa};

/// What a processor does when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    Running,
    /// HLT: until an interrupt.
    Halted,
    /// After INIT: until a start-up message.
    WaitForSipi,
}

/// What others tell a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Init,
    Sipi {
        vector: u8,
    },
    Nmi,
    /// An encrypted guest has made a state for the processor to run from.
    StartFrom {
        vmsa: Spa,
    },
    /// An encrypted guest wants it to end.
    Stop,
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
    /// Units of time it has run.
    pub(super) retired: u64,
    /// What it was told while it was away, in order.
    mail: Vec<Message>,
    bootstrap: bool,
}

impl Processor {
    /// The first processor is the one that boots.
    pub(super) fn new(vcpu: Vcpu, activity: Activity) -> Processor {
        let bootstrap = activity == Activity::Running;
        Processor { vcpu: Seat(Some(Box::new(vcpu))), activity, retired: 0, mail: Vec::new(), bootstrap }
    }

    /// Delivers a message, now or when the processor is back.
    pub(super) fn tell(&mut self, message: Message) {
        let Some(vcpu) = self.vcpu.present() else {
            self.mail.push(message);
            return;
        };
        match message {
            Message::Init => {
                vcpu.init();
                // The bootstrap processor goes to the reset vector, the others wait to be started.
                self.activity = if self.bootstrap { Activity::Running } else { Activity::WaitForSipi };
            }
            Message::Sipi { vector } => {
                if self.activity == Activity::WaitForSipi {
                    vcpu.start_at(vector);
                    self.activity = Activity::Running;
                }
            }
            Message::Nmi => {
                vcpu.inject_nmi();
                if self.activity == Activity::Halted {
                    self.activity = Activity::Running;
                }
            }
            Message::StartFrom { vmsa } => {
                vcpu.set_vmsa(vmsa);
                self.activity = Activity::Running;
            }
            Message::Stop => self.activity = Activity::WaitForSipi,
            Message::Forget { gfn } => vcpu.mmu().flush_gpa_range(gfn, 1),
        }
    }

    /// The processor runs from the state that the guest has put at `vmsa`, as soon as it is not away.
    pub(super) fn start_from(&mut self, vmsa: Spa) {
        self.tell(Message::StartFrom { vmsa });
    }

    /// The processor is no longer to run.
    pub(super) fn stop(&mut self) {
        self.tell(Message::Stop);
    }

    /// The processor is back and hears what it was told meanwhile.
    pub(super) fn read_mail(&mut self) {
        for message in core::mem::take(&mut self.mail) {
            self.tell(message);
        }
    }
}
