//! Files made by hand, byte by byte, so that they can be wrong in any way.

/// A file in the making, and where its lengths and counts stand.
#[derive(Clone, Default)]
pub struct File {
    pub bytes: Vec<u8>,
    /// Where each stands, and how many bytes it has.
    pub lengths: Vec<(usize, usize)>,
}

/// What goes into a table of tensors.
#[derive(Clone)]
pub struct Entry {
    pub name: String,
    /// The fastest dimension first, as in a file.
    pub dims: Vec<u64>,
    /// As written; the number of `dims` if it is right.
    pub n_dims: u32,
    pub kind: u32,
    pub offset: u64,
}

impl Entry {
    pub fn new(name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        Self { name: name.to_owned(), dims: dims.to_vec(), n_dims: dims.len() as u32, kind, offset }
    }
}

impl File {
    /// Begins a file of version 3.
    pub fn new(n_tensors: u64, n_values: u64) -> Self {
        let mut file = Self::default();
        file.raw(b"GGUF");
        file.u32(3);
        file.length(n_tensors);
        file.length(n_values);
        file
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub fn u32(&mut self, number: u32) {
        self.raw(&number.to_le_bytes());
    }

    pub fn u64(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    pub fn length(&mut self, number: u64) {
        self.lengths.push((self.bytes.len(), 8));
        self.u64(number);
    }

    pub fn text(&mut self, text: &[u8]) {
        self.length(text.len() as u64);
        self.raw(text);
    }

    /// A key with its type and the bytes of its value.
    pub fn value(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.text(key.as_bytes());
        self.u32(kind);
        self.raw(bytes);
    }

    pub fn entry(&mut self, entry: &Entry) {
        self.text(entry.name.as_bytes());
        self.lengths.push((self.bytes.len(), 4));
        self.u32(entry.n_dims);
        for &n in &entry.dims {
            self.length(n);
        }
        self.u32(entry.kind);
        self.u64(entry.offset);
    }

    /// Zeros up to a multiple of `alignment`.
    pub fn pad(&mut self, alignment: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(alignment), 0);
    }

    /// A whole file: no values, these tensors, so many bytes of data.
    pub fn of(entries: &[Entry], n_data: usize) -> Vec<u8> {
        let mut file = Self::new(entries.len() as u64, 0);
        entries.iter().for_each(|entry| file.entry(entry));
        file.pad(32);
        file.bytes.resize(file.bytes.len() + n_data, 0);
        file.bytes
    }
}
