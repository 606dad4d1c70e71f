#!/bin/sh
# Runs on the build host after all packages are installed into the new root, which is $1.
# HOLDFAST_GUEST_FILES is the folder of this script, HOLDFAST_ROOT_UUID the file system's future UUID.
set -eu
root=$1

echo holdfast-guest > "$root/etc/hostname"
echo '127.0.0.1 localhost holdfast-guest' > "$root/etc/hosts"
echo "UUID=$HOLDFAST_ROOT_UUID / ext4 defaults,errors=remount-ro 0 1" > "$root/etc/fstab"

install -D -m 755 "$HOLDFAST_GUEST_FILES/control" "$root/usr/local/lib/holdfast-guest/control"
install -D -m 644 "$HOLDFAST_GUEST_FILES/holdfast-guest.service" \
    "$root/etc/systemd/system/holdfast-guest.service"
chroot "$root" systemctl enable holdfast-guest.service

# Nothing runs by itself later on: a test says what happens on the disk.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer systemd-pstore.service; do
    chroot "$root" systemctl mask "$unit"
done
# Nor what no test needs and an emulated processor takes long for. The kernel replays the root's
# journal when it mounts it; tests check file systems themselves.
for unit in getty-static.service getty@tty1.service systemd-fsck-root.service systemd-update-utmp.service \
    systemd-update-utmp-runlevel.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount modprobe@configfs.service \
    modprobe@dm_mod.service modprobe@fuse.service modprobe@loop.service; do
    chroot "$root" systemctl mask "$unit"
done
chroot "$root" systemctl set-default multi-user.target
# One cluster exists, made by the package; a test starts it. Its just-in-time compiler is left out of the image.
chroot "$root" systemctl disable postgresql.service
for settings in "$root"/etc/postgresql/*/main/postgresql.conf; do
    printf "jit = off\nshared_buffers = 32MB\nlisten_addresses = ''\n" >> "$settings"
done
# For tests that install a package of many files while the disk is copied.
cache=/var/cache/holdfast-guest
mkdir -p "$root$cache/package" "$root$cache/storage/partial"
chroot "$root" sh -c "cd $cache/package && apt-get download poppler-data"
# For tests of stacked devices. Not installed: their hooks would slow down every boot.
chroot "$root" apt-get install --download-only --yes --no-install-recommends \
    -o "Dir::Cache::Archives=$cache/storage" fdisk lvm2 mdadm cryptsetup-bin btrfs-progs
rm -r "$root$cache/storage/partial"

# Pressing the power button shuts it down.
rm -f "$root"/etc/acpi/events/*
printf 'event=button/power\naction=/usr/bin/systemctl poweroff\n' > "$root/etc/acpi/events/power"

# The initramfs that an installation on VMware would have.
modules=$root/usr/share/initramfs-tools/modules.d/holdfast
kept=$(cat "$modules")
printf 'vmw_pvscsi\nsd_mod\n' > "$modules"
chroot "$root" sh -c 'mkinitramfs -o /boot/initrd.vmware "$(basename /lib/modules/*)"'
mv "$root/boot/initrd.vmware" "$HOLDFAST_GUEST_FILES/"
echo "$kept" > "$modules"

mkdir -p "$root/boot/grub"
cat > "$root/boot/grub/grub.cfg" <<CONF
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
menuentry 'Debian' {
    search --no-floppy --fs-uuid --set=root $HOLDFAST_ROOT_UUID
    linux /vmlinuz root=UUID=$HOLDFAST_ROOT_UUID ro console=ttyS0,115200 net.ifnames=0 loglevel=5 panic=-1
    initrd /initrd.img
}
CONF
