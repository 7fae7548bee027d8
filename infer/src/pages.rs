//! Which pages of a pool are whose, and which hold a beginning that may come again.
//!
//! A page that is full never changes again. It is then known by the ids in it and by the page before it, and a sequence
//! that begins with the same ids takes it instead of computing it. Pages that nobody uses stay known until their room is
//! needed; the least recently used goes first.

use std::collections::{BTreeMap, HashMap};

use model::pool::PAGE;

/// What a known page holds, and all before it: two pages with the same name hold the same. 0 is the empty beginning.
pub type Name = u64;

/// The pages of a pool.
#[derive(Debug)]
pub struct Pages {
    pages: Vec<Page>,
    free: Vec<u32>,
    /// The name and the number of each.
    known: HashMap<Key, (Name, u32)>,
    /// Known pages that nobody uses, by when they were used last.
    idle: BTreeMap<u64, u32>,
    /// Names given so far.
    n_names: u64,
    /// Counts releases: the clock of `idle`.
    now: u64,
}

/// Under what a page is known: the name of what comes before, and its ids.
type Key = (Name, Box<[u32]>);

#[derive(Clone, Debug, Default)]
struct Page {
    n_users: usize,
    key: Option<Key>,
    /// Its place in `idle`.
    idle_since: u64,
}

impl Pages {
    /// `n` pages without content.
    pub fn new(n: usize) -> Self {
        Self {
            pages: vec![Page::default(); n],
            free: (0..n as u32).rev().collect(),
            known: HashMap::new(),
            idle: BTreeMap::new(),
            n_names: 0,
            now: 0,
        }
    }

    /// All of them.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Those that can be had.
    pub fn n_available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Those that hold a beginning and that nobody uses.
    pub fn n_idle(&self) -> usize {
        self.idle.len()
    }

    /// The known pages that `ids` begin with, now in use once more, and the name of the last. At least the last id is not
    /// covered: its logits are not kept.
    pub fn take_known(&mut self, ids: &[u32]) -> (Vec<u32>, Name) {
        let (mut pages, mut name) = (Vec::new(), 0);
        for ids in ids[..ids.len().saturating_sub(1)].chunks_exact(PAGE) {
            let Some(&(next, page)) = self.known.get(&(name, ids.into())) else { break };
            let entry = &mut self.pages[page as usize];
            if entry.n_users == 0 {
                self.idle.remove(&entry.idle_since);
            }
            entry.n_users += 1;
            pages.push(page);
            name = next;
        }
        (pages, name)
    }

    /// How many pages [`take_known`](Self::take_known) would find, and how many of these nobody uses.
    pub fn n_known(&self, ids: &[u32]) -> (usize, usize) {
        let mut name = 0;
        let known = ids[..ids.len().saturating_sub(1)].chunks_exact(PAGE).map_while(|ids| {
            let &(next, page) = self.known.get(&(name, ids.into()))?;
            name = next;
            Some(usize::from(self.pages[page as usize].n_users == 0))
        });
        known.fold((0, 0), |(n, n_idle), is_idle| (n + 1, n_idle + is_idle))
    }

    /// A page to write to, whose content nobody will ask for again.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let (_, page) = self.idle.pop_first()?;
                let key = self.pages[page as usize].key.take().expect("an idle page is known");
                self.known.remove(&key);
                page
            }
        };
        self.pages[page as usize].n_users = 1;
        Some(page)
    }

    /// Makes a page known that is now full of `ids` and comes after what has a name; the name of both.
    pub fn publish(&mut self, page: u32, before: Name, ids: &[u32]) -> Name {
        debug_assert_eq!(ids.len(), PAGE, "only full pages never change");
        let key: Key = (before, ids.into());
        if let Some(&(name, _)) = self.known.get(&key) {
            // Another sequence was faster; this page ends with its own.
            return name;
        }
        self.n_names += 1;
        self.known.insert(key.clone(), (self.n_names, page));
        self.pages[page as usize].key = Some(key);
        self.n_names
    }

    /// Gives back a sequence's pages, in the order they were taken.
    pub fn release(&mut self, pages: &[u32]) {
        // From the last on, so that of a beginning its end goes first: without its front it could not be found.
        for &page in pages.iter().rev() {
            let entry = &mut self.pages[page as usize];
            entry.n_users -= 1;
            if entry.n_users > 0 {
                continue;
            }
            if entry.key.is_some() {
                self.now += 1;
                entry.idle_since = self.now;
                self.idle.insert(self.now, page);
            } else {
                self.free.push(page);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(n: usize, seed: u32) -> Vec<u32> {
        (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761).wrapping_add(seed) % 1000).collect()
    }

    /// Fills pages for `ids`, publishing the full ones.
    fn store(pages: &mut Pages, ids: &[u32]) -> Vec<u32> {
        let (mut own, mut name) = pages.take_known(ids);
        for ids in ids.chunks(PAGE).skip(own.len()) {
            let page = pages.take().expect("room");
            own.push(page);
            if ids.len() == PAGE {
                name = pages.publish(page, name, ids);
            }
        }
        own
    }

    #[test]
    fn a_common_beginning_is_found_again_but_never_the_last_id() {
        let mut pages = Pages::new(8);
        let ids = text(3 * PAGE, 1);
        let own = store(&mut pages, &ids);
        assert_eq!(pages.n_available(), 5);
        pages.release(&own);
        assert_eq!((pages.n_available(), pages.n_idle()), (8, 3));
        let longer = [&ids[..], &[7]].concat();
        assert_eq!((pages.n_known(&longer), pages.n_known(&ids)), ((3, 3), (2, 2)));
        assert_eq!(pages.take_known(&ids).0, own[..2]);
        assert_eq!(pages.n_known(&longer), (3, 1));
        // The same ids after something else are something else.
        let moved = [&text(PAGE, 2)[..], &ids].concat();
        assert_eq!(pages.n_known(&moved).0, 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_its_end_before_its_front() {
        let mut pages = Pages::new(4);
        let (a, b) = (text(2 * PAGE + 1, 1), text(PAGE + 1, 2));
        let own_a = store(&mut pages, &a);
        pages.release(&own_a);
        let own_b = store(&mut pages, &b);
        pages.release(&own_b);
        assert_eq!((pages.n_known(&a).0, pages.n_known(&b).0), (2, 1));
        let taken: Vec<_> = (0..2).map(|_| pages.take().expect("room")).collect();
        assert_eq!((pages.n_known(&a).0, pages.n_known(&b).0), (1, 1));
        assert_eq!(pages.n_available(), 2);
        pages.take().expect("room");
        assert_eq!((pages.n_known(&a).0, pages.n_known(&b).0), (0, 1));
        pages.release(&taken);
        assert_eq!(pages.n_available(), 3);
    }

    #[test]
    fn of_two_pages_with_the_same_content_one_is_known() {
        let mut pages = Pages::new(4);
        let ids = text(PAGE, 1);
        let (first, second) = (pages.take().expect("room"), pages.take().expect("room"));
        let name = pages.publish(first, 0, &ids);
        assert_eq!(pages.publish(second, 0, &ids), name);
        pages.release(&[second]);
        assert_eq!((pages.n_idle(), pages.n_available()), (0, 3));
        pages.release(&[first]);
        assert_eq!((pages.n_idle(), pages.n_available()), (1, 4));
    }

    proptest! {
        #[test]
        fn no_page_is_lost_or_given_twice(
            steps in prop::collection::vec((0u32..4, 1usize..4 * PAGE, prop::bool::ANY), 1..80),
        ) {
            let mut pages = Pages::new(12);
            let mut held: Vec<Vec<u32>> = Vec::new();
            for (seed, n, release) in steps {
                if release && !held.is_empty() {
                    let own = held.remove(seed as usize % held.len());
                    pages.release(&own);
                }
                let ids = text(n, seed);
                if n.div_ceil(PAGE) <= pages.n_available() {
                    held.push(store(&mut pages, &ids));
                }
                let mut used: Vec<u32> = held.concat();
                used.sort_unstable();
                used.dedup();
                prop_assert_eq!(used.len() + pages.n_available(), 12);
            }
        }
    }
}
