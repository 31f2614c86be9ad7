#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Second half of a guest's first process: the file systems that kmemwatch and its tests expect, then the command.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
lab=/run/kmemwatch-lab

mount -t tmpfs tmpfs /dev/shm 2>/dev/null || { mkdir -p /dev/shm && mount -t tmpfs tmpfs /dev/shm; }
mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
ln -sf /proc/self/fd /dev/fd
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security 2>/dev/null
/bin/busybox ifconfig lo 127.0.0.1 up
/bin/busybox hostname lab

if grep -qw kmw.cgroup_v1 /proc/cmdline; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/memory /sys/fs/cgroup/unified
    mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    echo "+memory +pids +cpu" >/sys/fs/cgroup/cgroup.subtree_control
fi

: >"$lab/started"
# shellcheck source=/dev/null # written by boot.py
(. "$lab/command.sh") </dev/null >"$lab/output" 2>&1
echo $? >"$lab/status"
# With -no-reboot, a reset ends QEMU; nothing is left to write, the shared directory is not cached.
echo b >/proc/sysrq-trigger
