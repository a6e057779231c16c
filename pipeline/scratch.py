"""Folders on this disk for what does not fit into memory. What a killed process leaves goes when the next one comes."""

import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "degrain-tmp-"
RAY_CHARACTERS = 40  # of Ray's folder: its sockets have 67 more, and a socket's name 107 in all
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def scratch_folder(*, within: Path | None = None) -> Iterator[Path]:
    """An empty folder in the temporary one, gone at the end of the block with all that is in it.

    A lock says that it is in use for as long as its process lives, so that others can tell what nobody needs any more.

    Args:
        within: instead of the temporary folder.

    Raises:
        OSError: there is no place for it.
    """
    within = within or Path(tempfile.gettempdir())
    _remove_abandoned(within)
    folder, lock = _create(within)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is left goes with the next one
        os.close(lock)


def temporary_folder(*, most_characters: int) -> Path:
    """The temporary folder, or /tmp where its name is too long for the sockets that are put there."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) <= most_characters else Path("/tmp")  # noqa: S108  # folders of our own are made there


def own_folder(*, most_characters: int) -> Path:
    """A folder in the temporary one that is there for this user alone, and stays.

    Raises:
        OSError: there is no place for it, or somebody else has put one there.
    """
    name = f"degrain-{os.getuid()}"
    folder = temporary_folder(most_characters=most_characters - len(f"/{name}")) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to someone else: remove it, or name another place by TMPDIR")
    folder.chmod(0o700)
    return folder


def _create(within: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=within))
        with suppress(FileNotFoundError):  # another process took it for abandoned: there was no lock yet
            lock = os.open(folder, FOLDER)
            if _lock(lock, folder) is not False:
                return folder, lock
            os.close(lock)


def _remove_abandoned(temporary: Path) -> None:
    """Remove what processes left that are dead. What others own cannot be opened."""
    for folder in temporary.glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = os.open(folder, FOLDER)
            try:
                if _lock(lock, folder):
                    log.info("removing %s, which a process left that was killed", folder)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def _lock(descriptor: int, folder: Path) -> bool | None:
    """Take the lock of a folder that is open: False if another process has it, or the folder is gone.

    None where the file system has no locks: then nothing there is ever taken for abandoned.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
