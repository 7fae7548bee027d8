//! Writing files so that a crash at any moment leaves the old file or the new one, never half of one.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

/// Writes a file through `write`: to a temporary name in the same folder, synced, then renamed into
/// place, then the folder is synced so that the rename itself lasts. On any error the temporary file is
/// removed and what stood at `path` before stays.
///
/// # Errors
/// What `write` or the operating system says.
pub fn write_atomic(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let dir = folder_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".tmp").tempfile_in(dir)?;
    let mut buffer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    make_readable(temporary.as_file())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Bytes of a text file at most: indexes of the largest models have some megabytes.
const MAX_TEXT: u64 = 64 << 20;

/// Reads a text file of a model, which may be anything that somebody has put there.
///
/// # Errors
/// What the operating system says, and if it is too large or no regular file: from a pipe nothing may ever come.
pub fn read_text(path: &Path) -> io::Result<String> {
    let file = fs::metadata(path)?;
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    if !file.is_file() {
        return Err(wrong("not a regular file".into()));
    }
    if file.len() > MAX_TEXT {
        return Err(wrong(format!(
            "{} bytes, more than the {MAX_TEXT} that such a file may have",
            file.len()
        )));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_TEXT).read_to_string(&mut text)?;
    Ok(text)
}

/// Makes renames and new entries in a folder last through a power cut.
///
/// # Errors
/// What the operating system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    // Folders cannot be opened for syncing on Windows, which orders such changes itself.
    if cfg!(windows) { Ok(()) } else { File::open(dir)?.sync_all() }
}

/// Creates a folder and its parents, and makes them last.
///
/// # Errors
/// What the operating system says.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    sync_dir(folder_of(dir))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Temporary files are private; results are for others to read, as any file a program creates.
#[cfg(unix)]
fn make_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn make_readable(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_the_old_file_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("f");
        write_atomic(&path, |f| f.write_all(b"old")).expect("written");
        let failed = write_atomic(&path, |f| {
            f.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk full");
        assert_eq!(fs::read(&path).expect("there"), b"old");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }
}
