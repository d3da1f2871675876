//! Entries and their neighbours, for tests that meet all of them.

use emu_core::Spa;
use oracle::rmp::{Leaf, Map, Operand, Page, REGION};

use crate::rig::{MINE, OTHER, REGIONS, Rig};

/// A frame without an entry.
pub const UNCOVERED: u64 = REGIONS * REGION + 3;
/// Where the guest has the first frame of a region under test.
pub const GPA: u64 = 0x4000_0000;

impl Rig {
    /// Makes table and model what the scene is.
    pub fn load(&mut self, scene: &Scene) {
        self.map.clone_from(&scene.map);
        self.memory.write(Spa::new(0), &scene.image).unwrap();
    }
}

/// A map in which one page is under test.
#[derive(Clone, Debug)]
pub struct Scene {
    pub map: Map,
    pub frame: u64,
    /// Of the map, which many events begin with.
    image: Vec<u8>,
}

impl Scene {
    pub fn new(map: Map, frame: u64) -> Scene {
        let image = map.image();
        Scene { map, frame, image }
    }
    /// Where the guest has the page under test, if the page is where the guest thinks it is.
    pub fn gpa(&self) -> u64 {
        GPA + self.frame % REGION * 4096
    }
    pub fn spa(&self) -> u64 {
        self.frame << 12
    }
    /// An operand of an instruction of the guest on the page.
    pub fn operand(&self, leaf: Leaf, vmpl: usize) -> Operand {
        // The gva is where it would be in an identity mapping.
        Operand { gva: self.gpa(), gpa: self.gpa(), spa: self.spa(), leaf, asid: MINE, vmpl }
    }
}

/// Every sort of entry, with masks of no, few and all permissions for the level `vmpl`.
pub fn entries(masks: &[[u8; 4]]) -> Vec<Page> {
    let mut all = vec![Page::HYPERVISOR, Page { immutable: true, ..Page::HYPERVISOR }];
    let both = [false, true];
    for large in both {
        for (immutable, locked) in [(false, false), (true, false), (true, true)] {
            for asid in [0, MINE, OTHER] {
                for gpa in [0, GPA, GPA + 0x20_0000] {
                    for (vmsa, validated) in [(false, false), (false, true), (true, false), (true, true)] {
                        for &masks in masks {
                            all.push(Page {
                                assigned: true,
                                large,
                                immutable,
                                locked,
                                asid,
                                gpa,
                                vmsa,
                                validated,
                                masks,
                            });
                        }
                    }
                }
            }
        }
    }
    all
}

/// Every way a page with this entry can lie among others. Its `gpa` is that of the first page of its region.
pub fn scenes(entry: Page) -> Vec<Scene> {
    let at =
        |n: u64| Page { gpa: if entry.asid == 0 && !entry.large { entry.gpa } else { entry.gpa + n * 4096 }, ..entry };
    let lone = |n: u64| if entry.assigned { at(n) } else { entry };
    let other = Page { assigned: true, asid: OTHER, gpa: 0x7000, masks: Page::FIRST_MASKS, ..Page::HYPERVISOR };
    let mut scenes = Vec::new();
    let empty = Map::new(REGIONS);
    if entry.large {
        let mut map = empty.clone();
        for n in 0..REGION {
            map.pages[(REGION + n) as usize] = at(n);
        }
        scenes.push(Scene::new(map.clone(), REGION));
        scenes.push(Scene::new(map, REGION + 3));
        return scenes;
    }
    for n in [0, 3] {
        let mut map = empty.clone();
        map.pages[(REGION + n) as usize] = lone(n);
        scenes.push(Scene::new(map.clone(), REGION + n));
        map.pages[(REGION + 511) as usize] = other;
        scenes.push(Scene::new(map, REGION + n));
    }
    let mut fixed = empty.clone();
    fixed.pages[REGION as usize] = lone(0);
    fixed.pages[(REGION + 9) as usize] = Page { immutable: true, ..Page::HYPERVISOR };
    scenes.push(Scene::new(fixed, REGION));
    if entry.assigned && entry.asid != 0 {
        let mut map = empty;
        for n in 0..REGION {
            map.pages[(REGION + n) as usize] = at(n);
        }
        scenes.push(Scene::new(map, REGION));
    }
    scenes
}
