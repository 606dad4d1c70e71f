#!/bin/sh
# Runs on the build host before the kernel is installed into the new root, which is $1.
# What stands here shapes how the packages set themselves up.
set -eu
root=$1

# The initramfs needs only what reaches the root disk (ext4 and NVMe are part of the kernel): it is unpacked by an
# emulated processor at every boot.
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
echo 'MODULES=list' > "$root/etc/initramfs-tools/conf.d/holdfast"
printf 'virtio_pci\nvirtio_blk\n' > "$root/usr/share/initramfs-tools/modules.d/holdfast"
