# Disks, network, randomness and console of a guest: file systems are made, written and read back, and checksums printed
# that whoever holds the disks can confirm. A second processor goes away and comes back. Only what is there is tried;
# which modules it takes, this ramdisk has.
#
# usage: BUSYBOX=path sh devices.sh DIRECTORY        with busybox's applets on PATH
set -e
cd "$1"

# In the order in which they need each other; those that are part of the kernel are not here.
for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk virtio_console \
    virtio-rng failover net_failover virtio_net; do
    file=/lib/modules/$(uname -r)/$module.ko
    [ ! -e "$file" ] || insmod "$file"
done
# Disks are found in the background.
sleep 1

disk() {
    name=${1##*/}
    echo "disk $name sectors $(cat "/sys/class/block/$name/size") read-only $(cat "/sys/class/block/$name/ro")"
    if [ "$(cat "/sys/class/block/$name/ro")" = 1 ]; then
        echo "disk $name whole $(sha256sum <"$1")"
        return
    fi
    mke2fs -F "$1" >/dev/null 2>&1
    mkdir -p "mnt-$name"
    mount -t ext2 "$1" "mnt-$name" 2>/dev/null || mount -t ext4 "$1" "mnt-$name"
    awk -v name="$name" 'BEGIN { for (i = 0; i < 60000; i++) print name, i, i * 7919 % 60001 }' >"mnt-$name/lines"
    dd if=/dev/urandom of="mnt-$name/random" bs=64k count=16 2>/dev/null
    sync
    sum=$(cat "mnt-$name/lines" "mnt-$name/random" | sha256sum)
    umount "mnt-$name"
    mount -t ext2 "$1" "mnt-$name" 2>/dev/null || mount -t ext4 "$1" "mnt-$name"
    [ "$sum" = "$(cat "mnt-$name/lines" "mnt-$name/random" | sha256sum)" ] && echo "disk $name files read back"
    echo "disk $name lines $(sha256sum <"mnt-$name/lines")"
    umount "mnt-$name"
    echo "disk $name whole $(sha256sum <"$1")"
}
for device in /dev/vd[a-z] /dev/nvme?n1; do
    [ ! -b "$device" ] || disk "$device"
done

if [ -d /sys/class/net/eth0 ]; then
    ip link set lo up
    ip link set eth0 up
    cat >lease.sh <<'END'
#!/bin/sh
[ "$1" != bound ] || { ip addr add "$ip/$mask" dev eth0 && ip route add default via "$router" && echo "net lease $ip"; }
END
    chmod +x lease.sh
    udhcpc -i eth0 -n -q -s "$PWD/lease.sh" 2>/dev/null
    ping -c 3 10.0.2.2 | grep -E 'packets|bytes from' | sed 's/time=.*//; s/^/net /'
    seq 1 5000 >numbers
    nc 10.0.2.2 7 <numbers >echoed &
    client=$!
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        cmp -s numbers echoed && break
        sleep 1
    done
    kill $client 2>/dev/null || true
    cmp numbers echoed && echo "net echo $(sha256sum <echoed)"
fi

if grep -q virtio /sys/class/misc/hw_random/rng_available 2>/dev/null; then
    echo "rng $(dd if=/dev/hwrng bs=16 count=2 2>/dev/null | sha256sum)"
fi

if [ -c /dev/hvc0 ]; then
    echo "hello from the virtio console" >/dev/hvc0
    echo "console written"
fi

second=/sys/devices/system/cpu/cpu1/online
if [ -e $second ]; then
    echo 0 >$second
    echo "processors, one switched off: $(grep -c ^processor /proc/cpuinfo)"
    echo 1 >$second
    echo "processors, all switched on: $(grep -c ^processor /proc/cpuinfo)"
    echo "the second one counts to $(seq 1 9999 | taskset 2 tail -n 1)"
fi
