#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# First process of a guest: load modules, mount the host's files, go on with guest.sh in them.
# The kernel command line has kmw.tree, the working tree's path on the host.

export PATH=/bin
/bin/busybox mkdir -p /usr/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

for module in /modules/*; do
    [ -e "$module" ] || continue # everything is built in
    insmod "$module" || echo "lab: cannot load $module"
done

# The host's root, read only: what is written goes to tmpfs, to the scratch disk, or to the shared directory.
share=trans=virtio,version=9p2000.L,msize=1048576
mount -t 9p -o "$share,ro,cache=loose" root /new || exec echo "lab: no root file system"
for directory in tmp run root; do
    mount -t tmpfs -o mode=1777 tmpfs "/new/$directory"
done
mount -t ext4 /dev/vda /new/var/tmp || echo "lab: no scratch disk"

tree=$(sed 's/.*kmw\.tree=\([^ ]*\).*/\1/' /proc/cmdline)
mkdir -p "/new$tree" # may be below /tmp, which is empty now
mount -t 9p -o "$share,ro,cache=loose" tree "/new$tree"
mkdir -p /new/run/kmemwatch-lab
mount -t 9p -o "$share,cache=none" share /new/run/kmemwatch-lab

for directory in proc sys dev; do
    mount --move "/$directory" "/new/$directory"
done
exec switch_root /new /bin/sh /run/kmemwatch-lab/guest.sh
