# The workload: text, hashes, compression, processes and copies, with busybox alone. Prints results that depend on
# nothing but the programs, so that the same script on the host says what a guest must print.
#
# usage: BUSYBOX=path sh workload.sh DIRECTORY        with busybox's applets on PATH
set -e
cd "$1"

awk 'BEGIN { for (i = 0; i < 4000; i++) print (i * 7919) % 4001, "line", i, i / 7 }' >lines
echo "lines $(wc -l <lines) $(sha256sum <lines)"
echo "md5 $(md5sum <lines)"

gzip -c lines >lines.gz
echo "gzip $(sha256sum <lines.gz)"
gunzip -c lines.gz | cmp - lines
echo "gunzip same"

sort -n lines >sorted
echo "sort $(sha256sum <sorted)"
awk '{ sum += $1; product = (product * 31 + $3) % 1000003 } END { print "awk", sum, product, sum / product }' sorted
sed 's/line/LINE/; s/\([0-9]*\)$/<\1>/' sorted | tail -n 2
grep -c '7 line' sorted

forks=0
while [ $forks -lt 200 ]; do
    "$BUSYBOX" true
    forks=$((forks + 1))
done
echo "forks $forks"

dd if=/dev/zero of=zeros bs=64k count=128 2>/dev/null
dd if=zeros bs=1k 2>/dev/null | tr '\0' 'x' | sha256sum
( while :; do echo pipe || break; done 2>/dev/null ) | head -n 3000 | wc -l
rm lines lines.gz sorted zeros
echo "workload done"
