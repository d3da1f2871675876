//! Scripts as people write and mistake them.

use super::*;

fn one(what: &str) -> Result<What, ScriptError> {
    let text = format!("[[action]]\nwhen = {{ instructions = 1 }}\nwhat = {what}\n");
    Script::parse(&text).map(|script| script.actions[0].what.clone())
}

fn when(when: &str) -> Result<When, ScriptError> {
    let text = format!("[[action]]\nwhen = {when}\nwhat = {{ zap-all = {{}} }}\n");
    Script::parse(&text).map(|script| script.actions[0].when)
}

#[test]
fn amounts_have_suffixes_and_ranges_are_whole_pages() {
    let good =
        [("0", 0), ("4096", 4096), ("0x1000", 4096), ("4K", 4096), ("2M", 2 << 20), ("1g", 1 << 30), ("1T", 1 << 40)];
    for (text, bytes) in good {
        assert_eq!(parse_amount(text), Ok(bytes), "{text}");
    }
    for text in ["", "K", "-1", "2X", "1.5M", "0x", "0xg", "+4K", "99999999999T", " 4K", "4 K"] {
        assert_eq!(parse_amount(text), Err(TextError::Amount(text.to_owned())), "{text}");
    }
    let gpa = |gpa, len_bytes| Ok(Range::Gpa(GpaRange { gpa: Gpa::new(gpa), len_bytes }));
    assert_eq!("64M+2M".parse(), gpa(64 << 20, 2 << 20));
    assert_eq!("0+4K".parse(), gpa(0, 4096));
    let in_inode = Range::Inode { gmem: GmemId(3), offset_bytes: 4096, len_bytes: 8192 };
    assert_eq!("gmem3:0x1000+8K".parse(), Ok(in_inode));
    assert_eq!(in_inode.to_string(), "gmem3:0x1000+0x2000");
    for text in ["64M", "64M-2M", "gmem:0+4K", "gmem1+4K", "gmemx:0+4K"] {
        assert_eq!(text.parse::<Range>(), Err(TextError::Range(text.to_owned())), "{text}");
    }
    for text in ["1+4K", "4K+1", "4K+0", "0xfffffffffffff000+4K"] {
        assert_eq!(text.parse::<Range>(), Err(TextError::Pages(text.to_owned())), "{text}");
    }
}

#[test]
fn every_action_is_read_and_says_itself_in_the_words_of_summaries() {
    let words = [
        (r#"{ punch = "64M+2M" }"#, "punch 0x4000000+0x200000"),
        (r#"{ allocate = "gmem0:0+4K" }"#, "allocate gmem0:0x0+0x1000"),
        (r#"{ convert = { range = "0+4K", to = "private" } }"#, "convert 0x0+0x1000 to private"),
        (r#"{ convert = { range = "0+4K", to = "shared" } }"#, "convert 0x0+0x1000 to shared"),
        (r#"{ poison = "1M+4K" }"#, "poison 0x100000+0x1000"),
        (r#"{ balloon = "1M+1M" }"#, "balloon 0x100000+0x100000"),
        (r#"{ toggle = "1M+1M" }"#, "toggle 0x100000+0x100000"),
        (r#"{ zap = "1M+1M" }"#, "zap 0x100000+0x100000"),
        (r#"{ zap-all = {} }"#, "zap-all"),
        (r#"{ age = "1M+1M" }"#, "age 0x100000+0x100000"),
        (r#"{ pin = "1M+4K" }"#, "pin 0x100000+0x1000"),
        (r#"{ unpin = "1M+4K" }"#, "unpin 0x100000+0x1000"),
        (r#"{ unbind = 1 }"#, "unbind 1"),
        (r#"{ bind = 1 }"#, "bind 1"),
        (r#"{ replug = 0 }"#, "replug 0"),
        (r#"{ log-start = {} }"#, "log-start"),
        (r#"{ log-round = {} }"#, "log-round"),
        (r#"{ log-stop = {} }"#, "log-stop"),
        (r#"{ move-slot = { slot = 1, to = "8G" } }"#, "move-slot 1 to 0x200000000"),
    ];
    for (text, said) in words {
        assert_eq!(one(text).map(|what| what.to_string()), Ok(said.to_owned()), "{text}");
    }
}

#[test]
fn moments_are_an_instruction_a_rhythm_or_an_event() {
    assert_eq!(when("{ instructions = 5_000 }"), Ok(When::Instructions(5000)));
    assert_eq!(when("{ every = 10 }"), Ok(When::Every { every: 10, first: 10, times: None }));
    assert_eq!(when("{ every = 10, from = 3, times = 2 }"), Ok(When::Every { every: 10, first: 3, times: Some(2) }));
    assert_eq!(when(r#"{ event = "halt" }"#), Ok(When::Event { event: Happening::Halt, count: 1 }));
    let third = When::Event { event: Happening::PageFault, count: 3 };
    assert_eq!(when(r#"{ event = "page-fault", count = 3 }"#), Ok(third));
    for wrong in ["{}", "{ instructions = 1, every = 2 }", "{ count = 2 }", "{ from = 1 }"] {
        let error = when(wrong).unwrap_err().to_string();
        assert!(error.contains("`when` is { instructions = N }"), "{wrong}: {error}");
    }
    for wrong in ["{ every = 0 }", r#"{ event = "halt", count = 0 }"#, "{ every = 1, times = 0 }"] {
        assert!(when(wrong).unwrap_err().to_string().contains("at least 1"), "{wrong}");
    }
}

#[test]
fn a_mistake_is_answered_with_its_line_what_is_there_and_what_would_have_been_right() {
    let cases = [
        (r#"{ pnuch = "64M+2M" }"#, &["line 3", "unknown variant `pnuch`", "`punch`", "`move-slot`"][..]),
        (r#"{ punch = "64M+2X" }"#, &["line 3", "\"2X\" is not an amount", "4K, 2M or 1G"][..]),
        (r#"{ punch = "64M" }"#, &["line 3", "\"64M\" is not a range", "64M+2M"][..]),
        (r#"{ zap = "gmem0:0+4K" }"#, &["line 3", "by guest physical address"][..]),
        (r#"{ convert = { range = "0+4K", to = "secret" } }"#, &["line 3", "\"private\" or \"shared\""][..]),
        (r#"{ convert = { range = "0+4K" } }"#, &["line 3", "missing field `to`"][..]),
        (r#"{ convert = { range = "0+4K", to = "shared", now = 1 } }"#, &["line 3", "unknown field `now`"][..]),
        (r#"{ replug = "one" }"#, &["line 3", "invalid type"][..]),
    ];
    for (text, parts) in cases {
        let error = one(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text}: no {part:?} in\n{error}");
        }
    }
    let error = Script::parse("[random]\nevry = 5\n").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("`every`"), "{error}");
    let error = Script::parse("[random]\nweights = { baloon = 5 }\n").unwrap_err().to_string();
    assert!(error.contains("line 2") && error.contains("`balloon`"), "{error}");
    assert!(Script::parse("[random]\nevery = 0\n").is_err());
    assert!(Script::parse("[[action]]\nwhat = { zap-all = {} }\n").is_err(), "an action without a moment");
}

#[test]
fn a_random_section_has_defaults() {
    let script = Script::parse("[random]\nseed = 3\n").expect("a script");
    assert_eq!(script.random, Some(RandomConfig::with(3, super::super::random::DEFAULT_INTERVAL)));
    let script = Script::parse(
        "[random]\nevery = 5\nranges = [\"1M+1M\"]\nlongest = \"64K\"\nweights = { zap = 0, zap-all = 9 }\n",
    );
    let random = script.expect("a script").random.expect("a section");
    assert_eq!((random.seed, random.every, random.longest, random.ranges.len()), (None, 5, Length(64 << 10), 1));
    assert_eq!((random.weights.zap, random.weights.zap_all, random.weights.balloon), (0, 9, 6));
}
