//! ACPI: the fixed hardware ([`pm`]) and the tables that describe the board ([`tables`]), ACPI specification 6.5.

pub mod aml;
pub mod pm;
pub mod tables;

pub use pm::PowerManagement;
pub use tables::{AcpiConfig, AcpiError, AcpiImage};
