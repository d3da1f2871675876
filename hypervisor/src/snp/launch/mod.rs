//! The launch of an SNP guest, as the firmware does it.
