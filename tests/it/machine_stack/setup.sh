#!/bin/bash
# Stacks devices on the empty disks /dev/vdb to /dev/vdg, mounts their file systems, and starts writing to each. /dev/vdh is
# a FAT, as the firmware has one, which is hardly ever written to. The volumes `linear` and `striped` and the mirror of
# volumes /dev/md1 are left to the tests; the writers' process ids are in /run/writers.
set -eu
for package in /var/cache/holdfast-guest/storage/*.deb; do
    # /lib is a link, which plain extraction would replace.
    dpkg-deb --fsys-tarfile "$package" | tar --extract --keep-directory-symlink --directory /
done
ldconfig
modprobe -a dm_mod dm_crypt raid1 btrfs vfat
export DM_DISABLE_UDEV=1
lvm() { command lvm "$@" --config 'activation {udev_sync=0 udev_rules=0} devices {obtain_device_list_from_udev=0}'; }

# A volume group over two disks.
lvm vgcreate --quiet volumes /dev/vdb /dev/vdc
lvm lvcreate --quiet --yes --zero n --wipesignatures n --stripes 2 --size 96M --name plain volumes
lvm lvcreate --quiet --yes --zero n --wipesignatures n --stripes 2 --size 96M --name secret volumes
lvm lvcreate --quiet --yes --zero n --wipesignatures n --size 32M --name linear volumes
lvm lvcreate --quiet --yes --zero n --wipesignatures n --stripes 2 --stripesize 16k --size 32M --name striped volumes
for name in left right; do
    lvm lvcreate --quiet --yes --zero n --wipesignatures n --size 40M --name $name volumes
done
mdadm --quiet --create /dev/md1 --run --level=1 --raid-devices=2 --assume-clean --metadata=1.2 --bitmap=none \
    /dev/mapper/volumes-left /dev/mapper/volumes-right
echo passphrase | cryptsetup --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 luksFormat /dev/mapper/volumes-secret -
echo passphrase | cryptsetup --key-file - open /dev/mapper/volumes-secret crypt
# A mirror of two disks, in partitions.
for disk in /dev/vdd /dev/vde; do
    echo 'start=2048, size=262144' | sfdisk --quiet --label gpt "$disk"
done
mdadm --quiet --create /dev/md0 --run --level=1 --raid-devices=2 --assume-clean --metadata=1.2 --bitmap=none /dev/vdd1 /dev/vde1
mkfs.btrfs --quiet --data raid1 --metadata raid1 /dev/vdf /dev/vdg
mkfs.ext4 -q /dev/mapper/volumes-plain
mkfs.ext4 -q /dev/mapper/crypt
mkfs.ext4 -q /dev/md0

mkdir -p /mnt/plain /mnt/crypt /mnt/mirror /mnt/btrfs
mount /dev/mapper/volumes-plain /mnt/plain
mount /dev/mapper/crypt /mnt/crypt
mount /dev/md0 /mnt/mirror
mount -o device=/dev/vdf,device=/dev/vdg /dev/vdf /mnt/btrfs
mkdir -p /media/firmware
mount /dev/vdh /media/firmware
for folder in /mnt/*; do
    setsid bash -c "while :; do dd if=/dev/zero of=$folder/file bs=4k count=200 conv=fsync 2>/dev/null; sleep 0.05; done" \
        >/dev/null 2>&1 </dev/null &
    echo $! >>/run/writers
done
