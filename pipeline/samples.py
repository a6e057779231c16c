"""Photos to try things on: those that ship with camera noise of several sensitivities, written to a store."""

import sys

from pipeline.demo import DEMO_PHOTOS, noisy_photo
from pipeline.storage import open_store

ISOS = (1600, 3200, 6400, 12_800)


def write_samples(url: str) -> int:
    """Write them to a folder or bucket, except those that are there; returns how many there are.

    Raises:
        StorageError: it cannot be written.
    """
    store = open_store(url)
    for photo in DEMO_PHOTOS:
        for iso in ISOS:
            key = f"iso-{iso}/{photo.name}"
            if not store.exists(key):
                store.write(key, noisy_photo(photo, iso))
    store.close()
    return len(DEMO_PHOTOS) * len(ISOS)


if __name__ == "__main__":
    write_samples(sys.argv[1])
