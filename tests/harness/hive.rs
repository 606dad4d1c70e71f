//! Registry hives, and logs of their changes, made from nothing.
//!
//! Owns a writer of its own, so that tests need no Windows; that others read what it writes, and that what others write is read, has a
//! test. Format: see `readiness::hive` of the coordinator. One bin holds all cells; keys have no class.

use holdfast_coordinator::readiness::hive::{self, log};

/// How the list of a key's keys is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Without hints.
    Li,
    /// With the first letters.
    Lf,
    /// With digests, as Windows does today.
    Lh,
    /// Lists of two keys each, and a list of them.
    Ri,
}

/// A value's type and data.
pub type Data = (u32, Vec<u8>);

/// A key with all that is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    name: String,
    values: Vec<(String, Data)>,
    keys: Vec<Self>,
}

/// REG_DWORD.
#[must_use]
pub fn dword(number: u32) -> Data {
    (4, number.to_le_bytes().to_vec())
}

/// REG_SZ.
#[must_use]
pub fn text(text: &str) -> Data {
    (1, utf16(&format!("{text}\0")))
}

/// REG_EXPAND_SZ.
#[must_use]
pub fn path(text: &str) -> Data {
    (2, utf16(&format!("{text}\0")))
}

/// REG_MULTI_SZ.
#[must_use]
pub fn texts(texts: &[&str]) -> Data {
    (7, utf16(&format!("{}\0\0", texts.join("\0"))))
}

/// REG_BINARY.
#[must_use]
pub fn binary(bytes: &[u8]) -> Data {
    (3, bytes.to_vec())
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

impl Tree {
    /// The key at this path; made if there is none.
    pub fn key(&mut self, path: &str) -> &mut Self {
        path.split('\\').fold(self, |key, name| {
            let at = key.keys.iter().position(|found| found.name == name).unwrap_or_else(|| {
                key.keys.push(Self { name: name.to_owned(), ..Self::default() });
                key.keys.len() - 1
            });
            &mut key.keys[at]
        })
    }

    /// Sets a value of the key at this path.
    pub fn set(&mut self, path: &str, name: &str, data: Data) {
        let values = &mut self.key(path).values;
        values.retain(|(found, _)| found != name);
        values.push((name.to_owned(), data));
    }

    /// Takes away a key of the key at this path.
    pub fn remove(&mut self, path: &str, name: &str) {
        self.key(path).keys.retain(|key| key.name != name);
    }

    /// The hive with this as its topmost key.
    #[must_use]
    pub fn hive(&self, list: List) -> Vec<u8> {
        let mut cells = Cells { bytes: vec![0; 32], list };
        let descriptor = [1, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // Its own neighbour, for all keys.
        let security = u32::try_from(cells.bytes.len()).expect("a small hive");
        let neighbour = security.to_le_bytes();
        let count = self.count().to_le_bytes();
        cells.put(
            &[b"sk\0\0".as_slice(), &neighbour, &neighbour, &count, &20_u32.to_le_bytes(), &descriptor]
                .concat(),
        );
        let root = cells.key(self, None, security);
        let bins = cells.finish();
        let mut base = vec![0; 4096];
        base[..4].copy_from_slice(b"regf");
        base[48..60].copy_from_slice(&utf16("SYSTEM"));
        for (at, number) in [(4, 7), (8, 7), (20, 1), (24, 5), (32, 1), (36, root), (44, 1)] {
            base[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
        }
        base[40..44].copy_from_slice(&u32::try_from(bins.len()).expect("a small hive").to_le_bytes());
        sealed(&mut base);
        [base, bins].concat()
    }

    fn count(&self) -> u32 {
        1 + self.keys.iter().map(Self::count).sum::<u32>()
    }
}

/// Puts the sum of a base block right.
pub fn sealed(base: &mut [u8]) {
    if base.len() >= 512 {
        let sum = hive::sum(base).to_le_bytes();
        base[508..512].copy_from_slice(&sum);
    }
}

/// Makes a hive one whose last write, with this number, had begun and not ended.
#[must_use]
pub fn unfinished(mut hive: Vec<u8>, number: u32) -> Vec<u8> {
    hive[4..8].copy_from_slice(&number.to_le_bytes());
    sealed(&mut hive);
    hive
}

/// The log of changes that make a hive into another: from each step to the next an entry, numbered from `first` on.
#[must_use]
pub fn log_of(steps: &[&[u8]], first: u32) -> Vec<u8> {
    let mut log = steps[0][..512].to_vec();
    log[28] = 6;
    sealed(&mut log);
    for (pair, number) in steps.windows(2).zip(first..) {
        let (old, new) = (&pair[0][4096..], &pair[1][4096..]);
        let changed = |at: &usize| old.get(*at..at + 4096) != Some(&new[*at..at + 4096]);
        let pages: Vec<usize> = (0..new.len()).step_by(4096).filter(changed).collect();
        let mut entry = vec![0; 40];
        for at in &pages {
            entry.extend_from_slice(&u32::try_from(*at).expect("a small hive").to_le_bytes());
            entry.extend_from_slice(&4096_u32.to_le_bytes());
        }
        for at in &pages {
            entry.extend_from_slice(&new[*at..at + 4096]);
        }
        entry.resize(entry.len().next_multiple_of(512), 0);
        entry[..4].copy_from_slice(b"HvLE");
        for (at, field) in [(4, entry.len()), (12, number as usize), (16, new.len()), (20, pages.len())] {
            entry[at..at + 4].copy_from_slice(&u32::try_from(field).expect("a small hive").to_le_bytes());
        }
        sign(&mut entry);
        log.extend_from_slice(&entry);
    }
    log
}

/// Puts the digests of a log's entry right.
pub fn sign(entry: &mut [u8]) {
    const SEED: u64 = 14_219_357_686_671_994_754;
    if entry.len() >= 40 {
        let first = log::marvin(&entry[40..], SEED).to_le_bytes();
        entry[24..32].copy_from_slice(&first);
        let second = log::marvin(&entry[..32], SEED).to_le_bytes();
        entry[32..40].copy_from_slice(&second);
    }
}

/// The bins while they are filled.
struct Cells {
    bytes: Vec<u8>,
    list: List,
}

impl Cells {
    /// Adds a cell; where it is.
    fn put(&mut self, content: &[u8]) -> u32 {
        let at = self.bytes.len();
        let bytes = (content.len() + 4).next_multiple_of(8);
        self.bytes.extend_from_slice(&(-i32::try_from(bytes).expect("a small cell")).to_le_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(at + bytes, 0);
        u32::try_from(at).expect("a small hive")
    }

    fn numbers(&mut self, numbers: &[u32]) -> u32 {
        self.put(&numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
    }

    fn key(&mut self, key: &Tree, parent: Option<u32>, security: u32) -> u32 {
        let (name, is_latin) = name(&key.name);
        let mut node = vec![0; 76];
        node.extend_from_slice(&name);
        // Where it will be, so that those below can name it.
        let at = self.put(&node);
        let values: Vec<u32> = key.values.iter().map(|(name, data)| self.value(name, data)).collect();
        let values_list = if values.is_empty() { u32::MAX } else { self.numbers(&values) };
        let mut keys: Vec<&Tree> = key.keys.iter().collect();
        keys.sort_by_key(|key| key.name.to_uppercase());
        let cells: Vec<(u32, &str)> =
            keys.iter().map(|child| (self.key(child, Some(at), security), child.name.as_str())).collect();
        let keys_list = self.keys(&cells);
        node[..2].copy_from_slice(b"nk");
        node[2] = u8::from(is_latin) << 5 | if parent.is_none() { 0x0c } else { 0 };
        let count = |list: usize| u32::try_from(list).expect("a small hive");
        for (field, number) in [
            (16, parent.unwrap_or(0)),
            (20, count(cells.len())),
            (28, keys_list),
            (32, u32::MAX),
            (36, count(values.len())),
            (40, values_list),
            (44, security),
            (48, u32::MAX),
            (72, count(name.len())),
        ] {
            node[field..field + 4].copy_from_slice(&number.to_le_bytes());
        }
        let place = usize::try_from(at).expect("a small hive") + 4;
        self.bytes[place..place + node.len()].copy_from_slice(&node);
        at
    }

    fn keys(&mut self, cells: &[(u32, &str)]) -> u32 {
        if cells.is_empty() {
            return u32::MAX;
        }
        if self.list == List::Ri {
            let leaves: Vec<u32> = cells.chunks(2).map(|leaf| self.leaf(List::Lh, leaf)).collect();
            let mut list =
                [b"ri".as_slice(), &u16::try_from(leaves.len()).expect("few keys").to_le_bytes()].concat();
            list.extend(leaves.iter().flat_map(|leaf| leaf.to_le_bytes()));
            return self.put(&list);
        }
        self.leaf(self.list, cells)
    }

    fn leaf(&mut self, kind: List, cells: &[(u32, &str)]) -> u32 {
        let signature: &[u8; 2] = match kind {
            List::Li => b"li",
            List::Lf => b"lf",
            List::Lh | List::Ri => b"lh",
        };
        let mut list =
            [signature.as_slice(), &u16::try_from(cells.len()).expect("few keys").to_le_bytes()].concat();
        for (cell, name) in cells {
            list.extend_from_slice(&cell.to_le_bytes());
            let hint = match kind {
                List::Li => continue,
                List::Lf => {
                    let mut letters = [0; 4];
                    letters.iter_mut().zip(name.bytes()).for_each(|(place, letter)| *place = letter);
                    u32::from_le_bytes(letters)
                }
                List::Lh | List::Ri => {
                    let letters = name.to_uppercase();
                    letters
                        .encode_utf16()
                        .fold(0_u32, |sum, unit| sum.wrapping_mul(37).wrapping_add(unit.into()))
                }
            };
            list.extend_from_slice(&hint.to_le_bytes());
        }
        self.put(&list)
    }

    fn value(&mut self, called: &str, (kind, data): &Data) -> u32 {
        const SEGMENT: usize = 16_344;
        let bytes = u32::try_from(data.len()).expect("small data");
        let (size, place) = if data.len() <= 4 {
            let mut place = [0; 4];
            place[..data.len()].copy_from_slice(data);
            (bytes | 0x8000_0000, u32::from_le_bytes(place))
        } else if data.len() > SEGMENT {
            let segments: Vec<u32> = data.chunks(SEGMENT).map(|segment| self.put(segment)).collect();
            let list = self.numbers(&segments).to_le_bytes();
            let count = u16::try_from(segments.len()).expect("few segments").to_le_bytes();
            (bytes, self.put(&[b"db".as_slice(), &count, &list].concat()))
        } else {
            (bytes, self.put(data))
        };
        let (name, is_latin) = name(called);
        let mut cell = b"vk".to_vec();
        cell.extend_from_slice(&u16::try_from(name.len()).expect("a short name").to_le_bytes());
        for number in [size, place, *kind, u32::from(is_latin)] {
            cell.extend_from_slice(&number.to_le_bytes());
        }
        cell.extend_from_slice(&name);
        self.put(&cell)
    }

    fn finish(mut self) -> Vec<u8> {
        let used = self.bytes.len();
        let whole = (used + 8).next_multiple_of(4096);
        self.bytes.resize(whole, 0);
        let free = u32::try_from(whole - used).expect("a small hive");
        self.bytes[used..used + 4].copy_from_slice(&free.to_le_bytes());
        self.bytes[..4].copy_from_slice(b"hbin");
        self.bytes[8..12].copy_from_slice(&u32::try_from(whole).expect("a small hive").to_le_bytes());
        self.bytes
    }
}

/// A name as it is stored, and whether it is Latin-1.
fn name(text: &str) -> (Vec<u8>, bool) {
    let letters: Option<Vec<u8>> = text.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect();
    letters.map_or_else(|| (utf16(text), false), |letters| (letters, true))
}
