//! The guest-hypervisor communication block and the protocol over it.
