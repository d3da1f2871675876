//! Which instructions a generator draws from.

use iced_x86::{Code, Mnemonic};

use super::encode::encode;
use crate::admit::code_refused;
use crate::rng::SplitMix;

/// A list of instruction encodings, each of which may run natively.
#[derive(Clone, Debug)]
pub struct Catalogue {
    codes: Vec<Code>,
}

impl Catalogue {
    /// Every encoding of the modelled set that may run natively.
    pub fn all() -> Catalogue {
        Catalogue::filtered(|_| true)
    }

    /// Those whose results the manuals define to the bit.
    pub fn exact() -> Catalogue {
        Catalogue::filtered(|code| !approximate(code))
    }

    /// Those that `keep` keeps, of all.
    pub fn filtered(mut keep: impl FnMut(Code) -> bool) -> Catalogue {
        let codes = Code::values()
            .filter(|&code| candidate(code))
            .filter(|&code| keep(code))
            // Fixed stream: the catalogue must not depend on a seed.
            .filter(|&code| encode(code, &mut SplitMix::new(code as u64), 400).is_some())
            .collect();
        Catalogue { codes }
    }

    /// The encodings, in iced's order.
    pub fn codes(&self) -> &[Code] {
        &self.codes
    }
}

fn candidate(code: Code) -> bool {
    let op_code = code.op_code();
    let in_mode = op_code.is_instruction() && op_code.mode64() && op_code.amd_decoder64();
    // A form with FWAIT is two instructions to a decoder; both are here on their own.
    in_mode && !op_code.fwait() && code_refused(code).is_none()
}

/// Whether the result is an approximation whose bits differ between processors: reciprocals and x87 transcendentals.
pub fn approximate(code: Code) -> bool {
    use Mnemonic::*;
    matches!(
        code.mnemonic(),
        Rcpps
            | Rcpss
            | Rsqrtps
            | Rsqrtss
            | Vrcpps
            | Vrcpss
            | Vrsqrtps
            | Vrsqrtss
            | Fsin
            | Fcos
            | Fsincos
            | Fptan
            | Fpatan
            | F2xm1
            | Fyl2x
            | Fyl2xp1
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_everything_admitted_can_be_encoded() {
        let all = Catalogue::all();
        let missing: Vec<Code> =
            Code::values().filter(|&code| candidate(code)).filter(|code| !all.codes().contains(code)).collect();
        assert!(all.codes().len() > 1800, "{}", all.codes().len());
        assert!(missing.len() < 10, "{missing:?}");
        assert!(Catalogue::exact().codes().len() < all.codes().len());
    }
}
