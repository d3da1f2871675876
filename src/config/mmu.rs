//! What `--mmu` says: the kind of paging beneath the guest, and how the hypervisor's MMU works.
//!
//! Properties are the module parameters of `kvm`, `kvm_intel` and the capabilities that [`MmuParams`] has, by their names.

use core::fmt;
use core::str::FromStr;

use hypervisor::dirty::{ENTRY_BYTES, RingSize, RingWithBitmap};
use hypervisor::tdp::AdType;
use hypervisor::{DirtyRingConfig, EagerPageSplit, MmioCaching, MmuParams, NxHugePages, Pml, SlotZap};

use super::ConfigError;

/// The format of the tables that translate guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum NestedPaging {
    /// AMD: the format of long-mode tables.
    #[default]
    Npt,
    /// Intel: the extended page tables.
    Ept,
    /// None: the hypervisor shadows the guest's tables.
    Shadow,
}

impl FromStr for NestedPaging {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<NestedPaging, ConfigError> {
        match text.to_ascii_lowercase().as_str() {
            "npt" => Ok(NestedPaging::Npt),
            "ept" => Ok(NestedPaging::Ept),
            "shadow" => Ok(NestedPaging::Shadow),
            _ => Err(ConfigError::NestedPaging(text.to_owned())),
        }
    }
}

impl fmt::Display for NestedPaging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NestedPaging::Npt => "npt",
            NestedPaging::Ept => "ept",
            NestedPaging::Shadow => "shadow",
        })
    }
}

/// A kind with its properties.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MmuChoice {
    /// The kind.
    pub paging: NestedPaging,
    /// How the hypervisor's MMU works.
    pub params: MmuParams,
}

/// The kinds that a property means something for.
type Kinds = &'static [NestedPaging];
const ALL: Kinds = &[NestedPaging::Npt, NestedPaging::Ept, NestedPaging::Shadow];
const NESTED: Kinds = &[NestedPaging::Npt, NestedPaging::Ept];
const EPT: Kinds = &[NestedPaging::Ept];

/// A value: its word, and what it sets.
type Value = (&'static str, fn(&mut MmuParams));

/// A property: its name, the kinds that have it, its values.
struct Property {
    name: &'static str,
    kinds: Kinds,
    values: &'static [Value],
}

/// Every property.
const PROPERTIES: [Property; 7] = [
    Property {
        name: "ad",
        kinds: EPT,
        values: &[
            ("on", |p| p.ad = AdType::Enabled),
            ("off", |p| p.ad = AdType::Disabled),
            ("write-protect", |p| p.ad = AdType::WriteProtectOnly),
        ],
    },
    Property { name: "pml", kinds: EPT, values: &[("on", |p| p.pml = Pml::On), ("off", |p| p.pml = Pml::Off)] },
    Property {
        name: "eager-page-split",
        kinds: NESTED,
        values: &[
            ("on", |p| p.eager_page_split = EagerPageSplit::On),
            ("off", |p| p.eager_page_split = EagerPageSplit::Off),
        ],
    },
    Property {
        name: "nx-huge-pages",
        kinds: NESTED,
        values: &[("on", |p| p.nx_huge_pages = NxHugePages::On), ("off", |p| p.nx_huge_pages = NxHugePages::Off)],
    },
    Property {
        name: "mmio-caching",
        kinds: NESTED,
        values: &[("on", |p| p.mmio_caching = MmioCaching::On), ("off", |p| p.mmio_caching = MmioCaching::Off)],
    },
    Property {
        name: "slot-zap",
        kinds: ALL,
        values: &[("leaves", |p| p.slot_zap = SlotZap::Leaves), ("all", |p| p.slot_zap = SlotZap::All)],
    },
    Property {
        name: "dirty-ring",
        kinds: ALL,
        values: &[
            ("off", |p| p.dirty_ring = None),
            ("1024", |p| p.dirty_ring = ring(1024)),
            ("4096", |p| p.dirty_ring = ring(4096)),
            ("65536", |p| p.dirty_ring = ring(65536)),
        ],
    },
];

/// Rings of so many entries, and bitmaps for what no processor writes: devices, and the VMM itself.
fn ring(entries: u32) -> Option<DirtyRingConfig> {
    let size = RingSize::of_bytes(u64::from(entries) * ENTRY_BYTES).ok()?;
    Some(DirtyRingConfig { size, bitmap: RingWithBitmap::Yes })
}

impl FromStr for MmuChoice {
    type Err = ConfigError;
    fn from_str(text: &str) -> Result<MmuChoice, ConfigError> {
        let mut words = text.split(',');
        let paging: NestedPaging = words.next().unwrap_or_default().parse()?;
        let mut params = MmuParams::default();
        let mut given = [false; PROPERTIES.len()];
        for word in words {
            let unknown = || ConfigError::MmuProperty(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(unknown)?;
            let at = PROPERTIES.iter().position(|property| property.name == name).ok_or_else(unknown)?;
            let property = &PROPERTIES[at];
            let (_, set) = property.values.iter().find(|(word, _)| *word == value).ok_or_else(unknown)?;
            if core::mem::replace(&mut given[at], true) {
                return Err(ConfigError::Twice(property.name));
            }
            if !property.kinds.contains(&paging) {
                return Err(ConfigError::MmuWithout { property: property.name, paging });
            }
            set(&mut params);
        }
        if params.pml == Pml::On && params.ad != AdType::Enabled {
            return Err(ConfigError::LogsWithoutDirtyFlags);
        }
        Ok(MmuChoice { paging, params })
    }
}

/// As it is read back: the kind, and every property that is not at its default.
impl fmt::Display for MmuChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.paging)?;
        let applied = |mut params: MmuParams, set: fn(&mut MmuParams)| {
            set(&mut params);
            params
        };
        for property in &PROPERTIES {
            let chosen = property.values.iter().find(|(_, set)| applied(self.params, *set) == self.params);
            if let Some((value, set)) = chosen
                && applied(MmuParams::default(), *set) != MmuParams::default()
            {
                write!(f, ",{}={value}", property.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_alone_has_the_default_parameters() {
        for kind in ALL {
            let choice = MmuChoice { paging: *kind, params: MmuParams::default() };
            assert_eq!(kind.to_string().to_uppercase().parse(), Ok(choice));
        }
        assert_eq!("tdp".parse::<MmuChoice>(), Err(ConfigError::NestedPaging("tdp".to_owned())));
    }

    #[test]
    fn every_value_of_every_property_is_read_where_it_means_something() {
        for property in &PROPERTIES {
            for (value, set) in property.values {
                for kind in ALL {
                    let read = format!("{kind},{}={value}", property.name).parse::<MmuChoice>();
                    let mut params = MmuParams::default();
                    set(&mut params);
                    let expected = match property.kinds.contains(kind) {
                        true => Ok(MmuChoice { paging: *kind, params }),
                        false => Err(ConfigError::MmuWithout { property: property.name, paging: *kind }),
                    };
                    assert_eq!(read, expected);
                }
            }
        }
    }

    #[test]
    fn it_prints_as_it_is_read() {
        for text in
            ["shadow,dirty-ring=4096", "npt,slot-zap=all", "ept,pml=on,eager-page-split=off", "ept,ad=write-protect"]
        {
            assert_eq!(text.parse::<MmuChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<MmuChoice>().unwrap_err();
        assert_eq!(refused("ept,pml"), ConfigError::MmuProperty("pml".to_owned()));
        assert_eq!(refused("ept,pml=maybe"), ConfigError::MmuProperty("pml=maybe".to_owned()));
        assert_eq!(refused("ept,lmp=on"), ConfigError::MmuProperty("lmp=on".to_owned()));
        assert_eq!(refused("ept,pml=on,pml=off"), ConfigError::Twice("pml"));
        assert_eq!(refused("ept,ad=off,pml=on"), ConfigError::LogsWithoutDirtyFlags);
        assert_eq!(refused("npt,pml=on").to_string(), "--mmu npt has no property pml");
    }
}
