//! Guest memory under the RMP: assigned before the guest touches it, returned before the host uses it again.
