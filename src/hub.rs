//! Files of a repository on the Hugging Face hub, or on a server that speaks its protocol.
//!
//! The crate hf-hub knows the addresses and lists the files. Fetching is done here: hf-hub 0.5 compares no checksums,
//! appends whatever a server answers to a range, and after a failed retry asks for the file from its beginning and
//! appends that. Here a file is resumed only by an answer that says from where, and counts only if its hash is the one
//! that the hub names: SHA-256 of large files, git's of others.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, Response};
use ureq::{Agent, Body};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
pub const ENDPOINT: &str = "https://huggingface.co";

/// Attempts without a single new byte, after which a file is given up.
const ATTEMPTS: u32 = 5;

/// The pause after the first of them; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// Redirects within the hub, as for repositories that have a new name.
const REDIRECTS: usize = 5;

/// A repository at a commit.
pub struct Hub {
    agent: Agent,
    token: Option<String>,
    endpoint: String,
    repo: Repo,
    /// The commit that all files are taken from.
    pub commit: String,
    /// Names of all files.
    pub files: Vec<String>,
}

/// What the hub says of a file before it is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    url: String,
    /// Bytes.
    pub size: u64,
    hash: Hash,
}

/// The hash that a file must have, in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Hash {
    Sha256(String),
    /// SHA-1 of a header with the length, then the file.
    Git(String),
}

impl Hub {
    /// Asks for the files of a repository, at a branch, tag or commit.
    ///
    /// # Errors
    /// If the server has no such repository or does not answer.
    pub fn open(endpoint: &str, token: Option<String>, repo: &str, revision: &str) -> Result<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        // Nothing is kept in this cache: hf-hub only has to have one. It would look for a token in it.
        let api = ApiBuilder::from_cache(Cache::new(std::env::temp_dir().join("flint-no-cache")))
            .with_endpoint(endpoint.clone())
            .with_token(token.clone())
            .build()
            .context("cannot speak to the hub")?;
        let named = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
        let info = match api.repo(named).info() {
            Ok(info) => info,
            Err(ApiError::RequestError(error))
                if matches!(*error, ureq::Error::StatusCode(401 | 403 | 404)) =>
            {
                bail!(
                    "there is no model `{repo}` at revision `{revision}` on {endpoint}, or not for everyone: \
                     check the name; for a private one set HF_TOKEN"
                );
            }
            Err(error) => return Err(error).with_context(|| format!("cannot reach {endpoint}")),
        };
        if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
            bail!("{endpoint} gives `{}` for a commit of `{repo}`", info.sha);
        }
        let agent = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(30)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .build()
            .into();
        let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, info.sha.clone());
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Self { agent, token, endpoint, repo, commit: info.sha, files })
    }

    /// Size and hash of a file.
    ///
    /// # Errors
    /// If the server does not tell them.
    pub fn look_up(&self, name: &str) -> Result<Remote> {
        let mut url =
            format!("{}/{}/resolve/{}/{name}", self.endpoint, self.repo.url(), self.repo.url_revision());
        for _ in 0..REDIRECTS {
            let answer = self.get(&url, Some(0..=0)).with_context(|| format!("cannot ask for {name}"))?;
            let (status, headers) = (answer.status().as_u16(), answer.headers());
            match (status, header(headers, "location")) {
                // Within the hub; what leads elsewhere comes with the hash and leads to the file itself.
                (300..400, Some(place)) if place.starts_with('/') && !place.starts_with("//") => {
                    url = format!("{}{place}", self.endpoint);
                }
                (200..400, _) => return remote(url, headers).with_context(|| name.to_owned()),
                _ => bail!("{name}: the server answers {status}"),
            }
        }
        bail!("{name}: more than {REDIRECTS} redirects")
    }

    /// Fetches a file to a path, going on with what is there, and verifies it. `show` is told how many bytes are there.
    ///
    /// # Errors
    /// If the server gives up or the hash is another. What was fetched stays for another time, unless it is wrong.
    pub fn fetch(&self, remote: &Remote, path: &Path, mut show: impl FnMut(u64)) -> Result<()> {
        let (mut failed, mut pause) = (0, PAUSE);
        loop {
            let before = len(path)?;
            if before == remote.size && path.exists() {
                break;
            }
            let result = self.go_on(remote, path, before, &mut show);
            let now = len(path)?;
            (failed, pause) = if now > before { (0, PAUSE) } else { (failed + 1, 2 * pause) };
            match result {
                Err(error) if failed >= ATTEMPTS => return Err(error),
                Ok(()) if failed >= ATTEMPTS => {
                    bail!("the server ends after {now} of {} bytes", remote.size)
                }
                Ok(()) if now == remote.size => break,
                _ => std::thread::sleep(pause),
            }
        }
        let found = remote.hash.of(path).with_context(|| format!("cannot read {}", path.display()))?;
        if found != remote.hash {
            // Nothing says which part is wrong.
            std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
            bail!(
                "what came has the hash {}, the hub names {}: try again",
                found.digits(),
                remote.hash.digits()
            );
        }
        Ok(())
    }

    /// One request for what is missing.
    fn go_on(&self, remote: &Remote, path: &Path, have: u64, show: &mut impl FnMut(u64)) -> Result<()> {
        let have = if have > remote.size { 0 } else { have };
        let mut url = remote.url.clone();
        let mut answer = None;
        for _ in 0..=REDIRECTS {
            let came = self.get(&url, Some(have..=remote.size.saturating_sub(1)))?;
            match header(came.headers(), "location") {
                Some(place) if came.status().is_redirection() => {
                    url = if place.starts_with('/') { origin(&url) + place } else { place.to_owned() };
                }
                _ => {
                    answer = Some(came);
                    break;
                }
            }
        }
        let answer = answer.with_context(|| format!("more than {REDIRECTS} redirects"))?;
        let start = match (answer.status().as_u16(), header(answer.headers(), "content-range")) {
            (200, _) => 0,
            (206, Some(range)) if range.starts_with(&format!("bytes {have}-")) => have,
            (206, range) => bail!("asked for bytes from {have}, the server gives {range:?}"),
            (status, _) => bail!("the server answers {status}"),
        };
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.set_len(start)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
        // Whatever is announced, no more is written than the file has.
        let mut body = answer.into_body().into_reader().take(remote.size - start);
        let (mut buffer, mut there) = (vec![0; 1 << 16], start);
        loop {
            let n = body.read(&mut buffer)?;
            if n == 0 {
                return Ok(file.sync_all()?);
            }
            file.write_all(&buffer[..n])?;
            there += n as u64;
            show(there);
        }
    }

    fn get(&self, url: &str, range: Option<std::ops::RangeInclusive<u64>>) -> Result<Response<Body>> {
        // Compressed bytes could not be resumed.
        let mut request = self.agent.get(url).header("Accept-Encoding", "identity");
        if let Some(range) = range {
            request = request.header("Range", format!("bytes={}-{}", range.start(), range.end()));
        }
        // A token is the hub's business alone.
        if let Some(token) = self.token.as_ref().filter(|_| origin(url) == origin(&self.endpoint)) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        Ok(request.call()?)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> String {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find('/').map_or(url.len(), |at| host + at);
    url[..end].to_owned()
}

/// What the headers say of a file: directly, or with `x-linked-` where it lies elsewhere.
fn remote(url: String, headers: &HeaderMap) -> Result<Remote> {
    let etag = header(headers, "x-linked-etag").or(header(headers, "etag"));
    let digits = etag.unwrap_or_default().trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    let hash = match (digits.len(), digits.bytes().all(|b| b.is_ascii_hexdigit())) {
        (64, true) => Hash::Sha256(digits),
        (40, true) => Hash::Git(digits),
        _ => bail!("the server names no checksum (etag {etag:?}): the file could not be verified"),
    };
    let of_range = header(headers, "content-range").and_then(|range| range.rsplit('/').next());
    let size = header(headers, "x-linked-size").or(of_range).or(header(headers, "content-length"));
    let size = size.and_then(|size| size.parse().ok()).context("the server does not say how large it is")?;
    Ok(Remote { url, size, hash })
}

fn len(path: &Path) -> Result<u64> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(file.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Hash {
    fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }

    /// The hash of the same kind that a file has.
    fn of(&self, path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        Ok(match self {
            Self::Sha256(_) => Self::Sha256(digest(Sha256::new(), &mut file)?),
            Self::Git(_) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                Self::Git(digest(Sha1::new().chain_update(header), &mut file)?)
            }
        })
    }
}

fn digest<D: Digest>(mut digest: D, file: &mut File) -> io::Result<String> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_that_git_and_sha256sum_give() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").expect("written");
        let found = |hash: Hash| hash.of(&path).expect("read").digits().to_owned();
        assert_eq!(found(Hash::Git(String::new())), "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert_eq!(found(Hash::Sha256(String::new())), sha256);
    }

    #[test]
    fn a_token_stays_with_its_server() {
        assert_eq!(origin("https://a.b:8/c/d?e=https://f"), "https://a.b:8");
        assert_ne!(origin("https://a.b.evil/x"), origin("https://a.b"));
    }
}
