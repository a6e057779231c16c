"""Folders on this disk for what does not fit into memory. What a killed process leaves goes when the next one comes."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

PREFIX = "degrain-tmp-"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder in the temporary one, gone at the end of the block with all that is in it.

    A lock says that it is in use for as long as its process lives, so that others can tell what nobody needs any more.

    Raises:
        OSError: there is no place for it.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    folder, lock = _create()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what is left goes with the next one
        os.close(lock)


def _create() -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
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
