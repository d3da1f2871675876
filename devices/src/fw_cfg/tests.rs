use super::*;
use crate::bus::DmaError;

/// A small memory from address 0.
struct Memory(Vec<u8>);

impl Memory {
    fn range(&self, gpa: Gpa, len: usize) -> Result<std::ops::Range<usize>, DmaError> {
        let start = gpa.raw() as usize;
        let end = start.checked_add(len).filter(|&end| end <= self.0.len()).ok_or(DmaError { gpa, len })?;
        Ok(start..end)
    }
    fn request(&mut self, at: usize, control: u32, length: u32, address: u64) {
        self.0[at..at + 4].copy_from_slice(&control.to_be_bytes());
        self.0[at + 4..at + 8].copy_from_slice(&length.to_be_bytes());
        self.0[at + 8..at + 16].copy_from_slice(&address.to_be_bytes());
    }
    fn control(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }
}

impl DmaPort for Memory {
    fn read(&mut self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), DmaError> {
        let range = self.range(gpa, bytes.len())?;
        bytes.copy_from_slice(&self.0[range]);
        Ok(())
    }
    fn write(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), DmaError> {
        let range = self.range(gpa, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

fn read_item(fw: &mut FwCfg, key: u16, len: usize) -> Vec<u8> {
    fw.write(Reg::Selector, Width::Word, key as u32);
    (0..len).map(|_| fw.read(Reg::Data, Width::Byte) as u8).collect()
}

fn start_dma(fw: &mut FwCfg, at: u64) -> bool {
    fw.write(Reg::DmaHigh, Width::Dword, ((at >> 32) as u32).swap_bytes());
    fw.write(Reg::DmaLow, Width::Dword, (at as u32).swap_bytes())
}

#[test]
fn exactly_four_ports_decode() {
    let ports: Vec<u16> = (0..=0xffff).filter(|&port| decode(port).is_some()).collect();
    assert_eq!(ports, [0x510, 0x511, 0x514, 0x518]);
}

#[test]
fn items_read_byte_by_byte_and_then_as_zeros() {
    let mut fw = FwCfg::new();
    assert_eq!(read_item(&mut fw, key::SIGNATURE, 6), b"QEMU\0\0");
    assert_eq!(read_item(&mut fw, key::ID, 4), [3, 0, 0, 0]);
    fw.set_cmdline("console=ttyS0", 0x2_0000);
    assert_eq!(read_item(&mut fw, key::CMDLINE_SIZE, 4), 14_u32.to_le_bytes());
    assert_eq!(read_item(&mut fw, key::CMDLINE_DATA, 14), b"console=ttyS0\0");
    assert_eq!(read_item(&mut fw, 0x3abc, 2), [0, 0]);
}

#[test]
fn the_directory_lists_files_by_name_with_their_sizes() {
    let mut fw = FwCfg::new();
    fw.add_file("opt/z", vec![1, 2, 3]);
    fw.set_e820(&[E820 { base: Gpa::new(0x10_0000), length: 0x20_0000, kind: 1 }]);
    fw.add_file("opt/z", vec![1, 2, 3, 4]);
    let directory = fw.item(key::FILE_DIR).expect("directory").to_vec();
    assert_eq!(directory[..4], 2_u32.to_be_bytes());
    assert_eq!(directory.len(), 4 + 2 * 64);
    assert_eq!(directory[4..8], 20_u32.to_be_bytes());
    assert_eq!(&directory[12..21], b"etc/e820\0");
    assert_eq!(directory[68..72], 4_u32.to_be_bytes());
    let key = u16::from_be_bytes([directory[8], directory[9]]);
    assert_eq!(fw.item(key).map(<[u8]>::len), Some(20));
    let mut entry = 0x10_0000_u64.to_le_bytes().to_vec();
    entry.extend(0x20_0000_u64.to_le_bytes());
    entry.extend(1_u32.to_le_bytes());
    assert_eq!(fw.item(key), Some(&entry[..]));
}

#[test]
fn dma_selects_skips_reads_and_pads() {
    let mut fw = FwCfg::new();
    let mut memory = Memory(vec![0xaa; 0x4000]);
    fw.set(key::KERNEL_DATA, (0..100).collect());
    memory.request(0x10, (key::KERNEL_DATA as u32) << 16 | DMA_SELECT | DMA_SKIP, 90, 0);
    assert!(start_dma(&mut fw, 0x10));
    assert_ne!(memory.control(0x10), 0, "nothing happens before memory is lent");
    fw.run_dma(&mut memory);
    assert_eq!(memory.control(0x10), 0);
    memory.request(0x10, DMA_READ, 4, 0x100);
    start_dma(&mut fw, 0x10);
    fw.run_dma(&mut memory);
    assert_eq!(memory.0[0x100..0x105], [90, 91, 92, 93, 0xaa]);
    memory.request(0x10, DMA_READ, 0x2000, 0x100);
    start_dma(&mut fw, 0x10);
    fw.run_dma(&mut memory);
    assert_eq!(memory.control(0x10), 0);
    assert_eq!(memory.0[0x100..0x106], (94..100).collect::<Vec<u8>>());
    assert!(memory.0[0x106..0x2100].iter().all(|&byte| byte == 0));
    assert_eq!(memory.0[0x2100], 0xaa);
}

#[test]
fn failures_show_in_the_control_word_and_nothing_runs_twice() {
    let mut fw = FwCfg::new();
    let mut memory = Memory(vec![0; 0x100]);
    for (control, address) in [(DMA_SELECT | DMA_READ, 0x1000), (DMA_WRITE, 0x40), (DMA_READ, u64::MAX)] {
        memory.request(0x10, control, 16, address);
        start_dma(&mut fw, 0x10);
        fw.run_dma(&mut memory);
        assert_eq!(memory.control(0x10), DMA_ERROR);
    }
    memory.request(0x10, DMA_SELECT, 0, 0);
    fw.run_dma(&mut memory);
    assert_eq!(memory.control(0x10), DMA_SELECT);
    // A request outside memory is dropped.
    start_dma(&mut fw, 1 << 40);
    fw.run_dma(&mut memory);
    assert_eq!(fw.read(Reg::DmaHigh, Width::Dword).swap_bytes(), u32::from_be_bytes(*b"QEMU"));
    assert_eq!(fw.read(Reg::DmaLow, Width::Dword).swap_bytes(), u32::from_be_bytes(*b" CFG"));
}
