# Real programs of several packages on fixed inputs. They print results that depend on nothing but the programs and
# the processor; the same files run on the host, and what they print there is what a guest must print.
#
# usage: ROOT=where-the-packages-are INPUT=c-file sh programs.sh DIRECTORY        with busybox's applets on PATH
set -e
cd "$1"
library_path="$ROOT/lib/x86_64-linux-gnu:$ROOT/usr/lib/x86_64-linux-gnu"
run() {
    program=$1
    shift
    "$ROOT/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2" --library-path "$library_path" "$ROOT/$program" "$@"
}
perl() { run usr/bin/perl "$@"; }
zstd() { run usr/bin/zstd "$@"; }
xz() { run usr/bin/xz "$@"; }
openssl() { run usr/bin/openssl "$@"; }
lua() { run usr/bin/lua5.4 "$@"; }
python() { run usr/bin/python3.11 -I -S -B "$@"; }
cc1() { run usr/lib/gcc/x86_64-linux-gnu/12/cc1 -quiet -fpreprocessed "$@"; }
hash() { sha256sum | cut -c1-64; }
export PYTHONHOME="$ROOT/usr" OPENSSL_CONF=/dev/null

perl -e '
    my ($x, %count) = (12345);
    for (1 .. 3000) {
        $x = ($x * 1103515245 + 12345) % 2147483648;
        $count{$x % 97}++;
        printf "%d %s %.15g\n", $x, unpack("H*", pack("N", $x)), sqrt($x) * log($x + 1);
    }
    print join(" ", map { "$_=$count{$_}" } sort { $a <=> $b } keys %count), "\n";
' >numbers
echo "perl $(hash <numbers)"
perl -ne '$n++ if /(\d)\1\d*[a-f]{2}/; END { print "perl regex $n\n" }' numbers

zstd -q --single-thread -5 -c numbers >numbers.zst
echo "zstd $(hash <numbers.zst)"
zstd -q -dc numbers.zst | cmp - numbers
xz -T1 -2 -c numbers >numbers.xz
echo "xz $(hash <numbers.xz)"
xz -dc numbers.xz | cmp - numbers
echo "round trips same"

for digest in md5 sha1 sha256 sha512 sha3-256 blake2b512; do
    echo "openssl $digest $(openssl dgst -$digest -r numbers | cut -d' ' -f1)"
done
key=000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f
iv=f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff
for cipher in aes-256-cbc aes-256-ctr chacha20 camellia-256-cbc; do
    openssl enc -$cipher -K $key -iv $iv -in numbers >encrypted
    openssl enc -d -$cipher -K $key -iv $iv -in encrypted | cmp - numbers
    echo "openssl $cipher $(hash <encrypted)"
done
openssl prime 170141183460469231731687303715884105727
# RFC 8032, "Test Vectors for Ed25519": the secret key of TEST 1, in PKCS #8, signs a text of ours.
printf '\60\56\2\1\0\60\5\6\3\53\145\160\4\42\4\40' >key.der
printf '\235\141\261\235\357\375\132\140\272\204\112\364\222\354\54\304\104\111\305\151\173\62\151\31\160\73\254\3\34\256\177\140' >>key.der
openssl pkeyutl -sign -rawin -keyform DER -inkey key.der -in numbers -out signature
echo "openssl ed25519 $(hash <signature)"

lua -e '
    local t, s = {}, 0.0
    for i = 1, 5000 do t[i] = math.fmod(i * 7919.5, 613) end
    table.sort(t)
    for i, v in ipairs(t) do s = s + math.sin(v) / i end
    print("lua", string.format("%.17g %.17g %d", s, t[2500] ^ 1.5, #t), (1 << 62) // 7, ("x"):rep(3))
'
python -c '
import sys
def sieve(n):
    flags = bytearray([1]) * (n + 1)
    flags[0:2] = b"\0\0"
    for i in range(2, int(n ** 0.5) + 1):
        if flags[i]:
            flags[i * i :: i] = bytes(len(flags[i * i :: i]))
    return [i for i, f in enumerate(flags) if f]
p = sieve(20000)
print("python", sys.version_info[:2], len(p), sum(p), pow(3, p[-1], 10 ** 40), sum(1 / x for x in p), 2 ** 300 % 1000003)
'
for level in 0 2 3; do
    cc1 -O$level "$INPUT" -o out.s
    echo "cc1 -O$level $(wc -l <out.s) $(hash <out.s)"
done
rm numbers numbers.zst numbers.xz encrypted key.der signature out.s
echo "programs done"
