//! A host that lies to a whole Linux guest: every lie of `--inject` against Debian's kernels, unmodified. What the
//! architecture stands against leaves the guest's words as they are without the lie, or ends as #VC in the guest's kernel;
//! what it does not stand against the kernel's own #VC handler refuses.
//!
//! What they need is fetched by `cargo xtask fetch`. Each run ends when its lie has been answered.
#![forbid(unsafe_code)]

mod guests;

use std::time::Duration;

use bifold::config::{Defence, Lie};
use emu_core::PageSize;
use guests::debian::fetched;
use guests::rows::every_row;
use guests::{Ended, guest};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(600);
/// A lie about a page that is used at once has been answered so many instructions later.
const ANSWERED: u64 = 30_000_000;
/// Programs run by then.
const PROGRAMS: u64 = 4_000_000_000;

/// Flags of a guest whose RMP has entries of 4 KiB, and of one that has them of 2 MiB.
const SMALL: &[&str] = &["--vm", "snp"];
const LARGE: &[&str] = &["--vm", "snp,rmp=2m", "--pages", "2m"];

/// A boot that ends after `most` instructions, if not before; `None` when something was not fetched.
fn boot(kernel: &str, flags: &[&str], lie: Option<&str>, most: u64) -> Option<Ended> {
    let image = fetched(&format!("vmlinuz-{kernel}"))?;
    let initrd = fetched("workload.cpio")?;
    let most = most.to_string();
    let options =
        ["--memory", "256M", "--no-reboot", "--append", "console=ttyS0 panic=-1", "--max-instructions", &most];
    let lie = lie.iter().flat_map(|lie| ["--inject", lie]);
    let mut words = vec![image.into_os_string(), "--initrd".into(), initrd.into_os_string()];
    words.extend(flags.iter().copied().chain(options).chain(lie).map(Into::into));
    Some(guest(words, LIMIT))
}

/// What the run says of its lie, after a look at what does not differ from lie to lie.
fn told(ended: &Ended, lie: Lie, entry: PageSize) -> Value {
    let told = ended.json()["injected"].clone();
    assert_eq!(told["what"], lie.name(), "{told}");
    assert_eq!(told["promised"], lie.defence(entry).name(), "{told}");
    told
}

/// A kernel, and after how many instructions it is at work and has its console.
type Moment = (&'static str, u64);

/// The host lies about the page that the kernel executes, and the guest's console is what it is without that.
fn goes_unnoticed((kernel, at): Moment, flags: &[&str], entry: PageSize, lies: &[Lie]) {
    let Some(honest) = boot(kernel, flags, None, at + ANSWERED) else { return };
    assert_eq!(honest.json()["outcome"], "limit", "{}", honest.tail());
    assert!(honest.console.len() > 1000, "the kernel speaks: {}", honest.tail());
    for &lie in lies {
        let ended = boot(kernel, flags, Some(&format!("{lie}@{at}:code")), at + ANSWERED).expect("it was there");
        let told = told(&ended, lie, entry);
        match lie.defence(entry) {
            Defence::Refused => assert!(told["result"] == "refused" && told["caught"].is_null(), "{told}"),
            Defence::Caught => {
                assert_eq!(told["result"], "done", "{told}");
                let caught = told["caught"].as_u64().unwrap_or_else(|| panic!("nobody caught it: {told}"));
                assert!((at..at + 1000).contains(&caught), "at its first use: {told}");
            }
            other => panic!("{lie} is not meant to go unnoticed: {other:?}"),
        }
        let (one, other) = (said(&honest), said(&ended));
        assert!(one.len().abs_diff(other.len()) < 5, "{lie}: the guest does not go on as before:\n{}", ended.tail());
        for (one, other) in one.iter().zip(&other) {
            assert_eq!(one, other, "{lie}: the guest notices");
        }
    }
}

/// The lines of the console that are whole, without their times: an exit more makes an interrupt come at another boundary.
fn said(ended: &Ended) -> Vec<String> {
    let text = ended.text();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let timeless = |line: &str| line.split_once("] ").map_or(line, |(_, words)| words).to_owned();
    whole.lines().map(timeless).collect()
}

/// The host takes away the stack of the first program. The kernel is told by #VC, and ends the program, or itself if the
/// access was its own.
fn meets_an_unvalidated_page(kernel: &str, lie: Lie) {
    let Some(ended) = boot(kernel, SMALL, Some(&format!("{lie}@0:user")), PROGRAMS) else { return };
    let told = told(&ended, lie, PageSize::Size4K);
    assert_eq!(told["result"], "done", "{told}");
    assert_eq!(told["caught"].is_u64(), lie.defence(PageSize::Size4K) == Defence::CaughtAndUnvalidated, "{told}");
    let (json, text) = (ended.json(), ended.text());
    if json["outcome"] == "reset" {
        assert!(text.contains("exit-code 0x404 in #VC exception"), "{lie}: no word of #VC:\n{}", ended.tail());
        assert!(text.contains("Attempted to kill init"), "{lie}: the program goes on:\n{}", ended.tail());
    } else {
        assert_gave_up(&ended, lie);
    }
}

/// The kernel has ended itself by the protocol, as it does with a #VC that it cannot handle.
fn assert_gave_up(ended: &Ended, lie: Lie) {
    let json = ended.json();
    let why = json["why"].as_str().unwrap_or_default();
    // In general, or because CPUID was not answered: the decompressor asks for nothing else.
    let known = ["(reason set 0, code 0x0", "(reason set 1, code 0x5"].iter().any(|reason| why.contains(reason));
    assert!(json["outcome"] == "terminated" && known, "{lie}: {json}\n{}", ended.tail());
}

/// The host falsifies the first answer of a kind, and the kernel gives up.
fn gives_up(kernel: &str, lie: Lie) {
    let Some(ended) = boot(kernel, SMALL, Some(&format!("{lie}@0")), PROGRAMS) else { return };
    let told = told(&ended, lie, PageSize::Size4K);
    assert_eq!((&told["result"], lie.defence(PageSize::Size4K)), (&"done".into(), Defence::Guest), "{told}");
    assert_gave_up(&ended, lie);
}

fn everything(moment: Moment) {
    goes_unnoticed(moment, SMALL, PageSize::Size4K, &[Lie::Replay, Lie::Remap, Lie::Swap, Lie::Resize]);
    goes_unnoticed(moment, LARGE, PageSize::Size2M, &[Lie::Resize, Lie::Remap]);
    let (kernel, _) = moment;
    meets_an_unvalidated_page(kernel, Lie::Drop);
    meets_an_unvalidated_page(kernel, Lie::DoubleValidate);
    for lie in [Lie::Ghcb, Lie::GhcbValid, Lie::Cpuid] {
        gives_up(kernel, lie);
    }
}

#[test]
fn linux_6_1_against_every_lie() {
    everything(("6.1", 500_000_000));
}

#[test]
fn linux_6_12_against_every_lie() {
    if every_row(&"6.12 against every lie") {
        everything(("6.12", 1_200_000_000));
    }
}
