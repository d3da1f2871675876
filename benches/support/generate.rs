//! The two kernels that are generated: thousands of small functions, more code than any cache of decoded code likes.

use std::fmt::Write;

/// Functions in the program.
const FUNCTIONS: u32 = 3000;

/// A generator of its own, so that the program is the same on every machine and for ever.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % n
    }
}

/// The text of `big.c`: `big` calls the functions in random order, `big2` within a window of 64 that moves slowly.
pub fn big() -> String {
    let mut rng = Lcg(2024);
    let mut c = String::from(
        "/* Generated. */\n#include \"kernel.h\"\n\nstatic u32 memory[256];\n\n\
         static void forget(void)\n{\n    for (int i = 0; i < 256; i++)\n        memory[i] = (u32)i;\n}\n\n",
    );
    for n in 0..FUNCTIONS {
        function(&mut c, n, &mut rng);
    }
    c.push_str("static u32 (*const table[])(u32, u32) = {\n");
    for n in 0..FUNCTIONS {
        let _ = writeln!(c, "    f{n},");
    }
    let _ = write!(
        c,
        "}};\n\n\
         u64 big(u64 n)\n{{\n    u32 seed = 3, a = 1;\n    u64 h = 0;\n    forget();\n    for (u64 i = 0; i < n * 1000; i++) {{\n        \
         a = table[next_random(&seed) % {FUNCTIONS}](a, (u32)i);\n        h += a;\n    }}\n    return mix(h, a);\n}}\n\n\
         u64 big2(u64 n)\n{{\n    u32 seed = 4, a = 1;\n    u64 h = 0;\n    forget();\n    for (u64 i = 0; i < n * 1000; i++) {{\n        \
         u32 window = (u32)(i >> 8) % ({FUNCTIONS} - 64);\n        \
         a = table[window + next_random(&seed) % 64](a, (u32)i);\n        h += a;\n    }}\n    return mix(h, a);\n}}\n"
    );
    c
}

fn function(c: &mut String, n: u32, rng: &mut Lcg) {
    let _ =
        writeln!(c, "static __attribute__((noinline)) u32 f{n}(u32 a, u32 b)\n{{\n    u32 c = {};", rng.below(1 << 20));
    for _ in 0..6 + rng.below(6) {
        let [k, slot, shift] = [rng.below(1 << 16), rng.below(256), 1 + rng.below(30)];
        let _ = match rng.below(9) {
            0 => writeln!(c, "    a += b ^ {k};"),
            1 => writeln!(c, "    c ^= a << {shift};"),
            2 => writeln!(c, "    b = b * {} + c;", k | 1),
            3 => writeln!(c, "    c += memory[{slot}];"),
            4 => writeln!(c, "    memory[{slot}] = a - c;"),
            5 => writeln!(c, "    a ^= memory[b & 255];"),
            6 => {
                writeln!(c, "    if (a & {})\n        c -= b;\n    else\n        b ^= a >> {shift};", 1 << (shift % 16))
            }
            7 => writeln!(c, "    if (c < {k}u << 12)\n        a = ~a + c;"),
            _ => writeln!(c, "    b += c >> {shift};"),
        };
    }
    c.push_str("    return a ^ (b + c);\n}\n\n");
}
