//! Who may ask, and how much: keys, and what each of them may use.
//!
//! A limit per minute is a bucket that holds a minute's worth and fills as time goes by, so that a pause is not lost and
//! nobody asks for two minutes' worth at once for longer than a moment. What an answer costs in tokens is known when it is
//! there: a bucket may be overdrawn by answers under way, and then nothing is taken until it has filled.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Whose key a request came with; 0 without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner(pub u64);

/// The keys of a server.
#[derive(Debug, Default)]
pub struct Accounts(Vec<Account>);

#[derive(Debug)]
struct Account {
    hash: [u8; 32],
    quota: Quota,
    used: Mutex<Used>,
}

/// What a key may use; nothing for as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Quota {
    /// Requests in a minute.
    requests: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    tokens: Option<u32>,
    /// Requests at a time.
    concurrent: Option<u32>,
}

#[derive(Debug)]
struct Used {
    requests: Bucket,
    tokens: Bucket,
    n_open: u32,
}

/// Fills up to a minute's worth.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    /// What is in it now.
    fn fill(&mut self, per_minute: u32, now: Instant) -> f64 {
        let (worth, time) = (f64::from(per_minute), now.saturating_duration_since(self.at).as_secs_f64());
        (self.level, self.at) = ((self.level + time * worth / 60.0).min(worth), now);
        self.level
    }

    /// Seconds until so much is in it.
    fn wait(&self, level: f64, per_minute: u32) -> u32 {
        ((level - self.level) * 60.0 / f64::from(per_minute)).ceil().max(1.0) as u32
    }
}

impl Accounts {
    /// Reads a file of keys: on each line a name, the SHA-256 of a key in hexadecimal digits, and its limits.
    ///
    /// # Errors
    /// If it cannot be read or a line is something else.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let lines = text.lines().enumerate();
        let lines = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
        let accounts = lines
            .map(|(i, line)| {
                account(line).map_err(|why| anyhow!("{}, line {}: {why}", path.display(), i + 1))
            })
            .collect::<Result<Vec<_>>>()?;
        if accounts.is_empty() {
            bail!("{} has no key", path.display());
        }
        Ok(Self(accounts))
    }

    /// Whether everybody may ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose a key is.
    pub fn owner(&self, key: &str) -> Option<Owner> {
        // Hashes are compared, all of them and in full, so that time tells nothing of a key.
        let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
        let differs = |other: &[u8; 32]| hash.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b));
        let found =
            self.0.iter().enumerate().fold(None, |found, (i, account)| match differs(&account.hash) {
                0 => Some(i),
                _ => found,
            });
        found.map(|i| Owner(1 + i as u64))
    }

    /// Lets a request of a key in.
    ///
    /// # Errors
    /// If its key has used up one of its limits.
    pub fn enter(self: &Arc<Self>, owner: Owner) -> Result<Open, ApiError> {
        let open = |counted| Open { accounts: self.clone(), owner: counted };
        let Some(account) = self.of(owner) else { return Ok(open(Owner(0))) };
        let Quota { requests, tokens, concurrent } = account.quota;
        let mut used = account.used();
        let now = Instant::now();
        if let Some(n) = concurrent.filter(|&n| used.n_open >= n) {
            return Err(ApiError::limited(format!("this key may have {n} requests at a time"), 1));
        }
        if let Some(n) = tokens.filter(|&n| used.tokens.fill(n, now) <= 0.0) {
            let why = format!("this key may use {n} tokens in a minute");
            return Err(ApiError::limited(why, used.tokens.wait(1.0, n)));
        }
        if let Some(n) = requests {
            if used.requests.fill(n, now) < 1.0 {
                let why = format!("this key may ask {n} times in a minute");
                return Err(ApiError::limited(why, used.requests.wait(1.0, n)));
            }
            used.requests.level -= 1.0;
        }
        used.n_open += 1;
        Ok(open(owner))
    }

    /// Notes that tokens were used.
    pub fn charge(&self, owner: Owner, n_tokens: usize) {
        let Some(account) = self.of(owner) else { return };
        if let Some(n) = account.quota.tokens {
            let mut used = account.used();
            used.tokens.fill(n, Instant::now());
            used.tokens.level -= n_tokens as f64;
        }
    }

    fn of(&self, owner: Owner) -> Option<&Account> {
        self.0.get((owner.0 as usize).checked_sub(1)?)
    }
}

impl Account {
    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that has been let in, until its answer is over.
#[derive(Debug)]
pub struct Open {
    accounts: Arc<Accounts>,
    owner: Owner,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(account) = self.accounts.of(self.owner) {
            account.used().n_open -= 1;
        }
    }
}

/// `NAME HASH [requests=N] [tokens=N] [concurrent=N]`
fn account(line: &str) -> Result<Account, String> {
    let mut words = line.split_whitespace();
    let hash = words.nth(1).and_then(|hash| {
        let byte = |i: usize| u8::from_str_radix(hash.get(2 * i..2 * i + 2)?, 16).ok();
        let bytes: Option<Vec<u8>> = (0..32).map(byte).collect();
        bytes.filter(|_| hash.len() == 64)?.try_into().ok()
    });
    let hash: [u8; 32] =
        hash.ok_or("must be a name and the SHA-256 of a key in 64 hexadecimal digits, then limits if any")?;
    let mut quota = Quota::default();
    for word in words {
        let (name, n) = word.split_once('=').unwrap_or((word, ""));
        let place = match name {
            "requests" => &mut quota.requests,
            "tokens" => &mut quota.tokens,
            "concurrent" => &mut quota.concurrent,
            _ => return Err(format!("`{word}`: a limit is requests=N, tokens=N (a minute) or concurrent=N")),
        };
        let n = n.parse().ok().filter(|&n: &u32| n > 0);
        let n = n.ok_or_else(|| format!("`{word}`: the limit must be a whole number from 1"))?;
        if place.replace(n).is_some() {
            return Err(format!("`{word}`: the limit is there twice"));
        }
    }
    let full = |n: Option<u32>| Bucket { level: n.unwrap_or(0).into(), at: Instant::now() };
    let used = Used { requests: full(quota.requests), tokens: full(quota.tokens), n_open: 0 };
    Ok(Account { hash, quota, used: Mutex::new(used) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn hash(key: &str) -> String {
        Sha256::digest(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn of(limits: &str) -> Arc<Accounts> {
        Arc::new(Accounts(vec![account(&format!("alice {} {limits}", hash("secret"))).expect("a key")]))
    }

    /// The error of a request and after how many seconds to try again.
    fn refused(accounts: &Arc<Accounts>) -> (String, u32) {
        let error = accounts.enter(Owner(1)).expect_err("refused");
        (error.body()["error"]["message"].as_str().expect("words").to_owned(), error.retry_after())
    }

    #[test]
    fn a_key_has_an_owner_and_lines_say_what_is_wrong_with_them() {
        let accounts = of("");
        assert_eq!((accounts.owner("secret"), accounts.owner("other")), (Some(Owner(1)), None));
        let hash = hash("x");
        for (line, word) in [
            ("alice".to_owned(), "SHA-256"),
            ("alice 00".to_owned(), "SHA-256"),
            (format!("alice {hash} speed=3"), "`speed=3`"),
            (format!("alice {hash} tokens"), "`tokens`"),
            (format!("alice {hash} tokens=0"), "from 1"),
            (format!("alice {hash} tokens=1 tokens=2"), "twice"),
        ] {
            assert!(account(&line).expect_err(&line).contains(word), "{line}");
        }
    }

    #[test]
    fn requests_in_a_minute_come_back_with_time() {
        let accounts = of("requests=30");
        let all: Vec<_> = (0..30).map(|_| accounts.enter(Owner(1)).expect("in")).collect();
        assert_eq!(refused(&accounts), ("this key may ask 30 times in a minute".into(), 2));
        accounts.0[0].used().requests.at -= Duration::from_secs(2);
        accounts.enter(Owner(1)).expect("one has come back");
        drop(all);
        assert_eq!(accounts.0[0].used().n_open, 0);
    }

    #[test]
    fn tokens_may_be_overdrawn_once() {
        let accounts = of("tokens=60");
        accounts.enter(Owner(1)).expect("in");
        accounts.charge(Owner(1), 100);
        let (why, seconds) = refused(&accounts);
        assert_eq!(why, "this key may use 60 tokens in a minute");
        assert!((40..=41).contains(&seconds), "{seconds}");
        accounts.0[0].used().tokens.at -= Duration::from_secs(41);
        accounts.enter(Owner(1)).expect("enough has come back");
    }

    #[test]
    fn so_many_at_a_time_until_they_are_over() {
        let accounts = of("concurrent=2");
        let first = accounts.enter(Owner(1)).expect("in");
        let _second = accounts.enter(Owner(1)).expect("in");
        assert_eq!(refused(&accounts), ("this key may have 2 requests at a time".into(), 1));
        drop(first);
        accounts.enter(Owner(1)).expect("in");
        Arc::new(Accounts::default()).enter(Owner(0)).expect("everybody");
    }
}
