"""One photo into one file, in this process and without a cluster."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from model.denoiser import Denoiser
from pipeline.denoise import DenoiseConfig, PhotoDenoiser
from pipeline.errors import ObjectExists, PhotoRejected, StorageError
from pipeline.images import promised_format
from pipeline.records import Outcome
from pipeline.redaction import explain
from pipeline.registry import read_weights
from pipeline.room import usable_cores
from pipeline.scratch import scratch_folder
from pipeline.shard import FILE_BYTES, PhotoResult
from pipeline.storage import Store, open_store, refuse_empty, split_url


def find_photo(source: str) -> str | None:
    """The source itself where it is one photo and not a collection.

    Raises:
        StorageError: nobody may look there.
    """
    root, name = split_url(source)
    if "://" in source:
        is_photo = promised_format(name) is not None and open_store(root).exists(name)
    else:
        is_photo = _found(Path.is_file, source)
    return source if is_photo else None


def denoise_one(source: str, target: str, *, weights: str, config: DenoiseConfig) -> dict[str, object]:
    """Denoise one photo in this process; returns what became of it.

    Args:
        source: the photo.
        target: the file to write, or a folder (there already, or with a `/` at its end) for a file of the same name.
        weights: as for a collection.
        config: strength and limits.

    Raises:
        ValueError: the target is empty, or there already, or its name says another format.
        PhotoRejected: the photo cannot be used; nothing is written.
        StorageError: it cannot be read, or the target cannot be written.
    """
    refuse_empty(target)
    _, source_key = split_url(source)
    if target.endswith("/") or ("://" not in target and _found(Path.is_dir, target)):
        target = f"{target.rstrip('/')}/{source_key}"
    target_root, target_key = split_url(target)
    read_root, read_key = split_url(source if "://" in source else os.path.realpath(source))  # it may be a link
    from_store, to_store = open_store(read_root), open_store(target_root)
    if _promise(source_key) != _promise(target_key):
        raise ValueError(f"degrain keeps the format of a photo: a target for {source_key} cannot be {target_key}")
    if to_store.exists(target_key):
        raise ValueError(f"{target} exists already: degrain overwrites no photo (name another file, or remove it)")
    _, parsed = read_weights(weights)
    photos = PhotoDenoiser(Denoiser(parsed), config, threads=usable_cores())
    with closing(to_store):
        if from_store.size(read_key) > FILE_BYTES:
            result = _denoise_large(photos, from_store, read_key, to_store, target_key, name=source_key)
        else:
            result = photos(from_store.read(read_key), source_key)
            if result.data is not None:
                to_store.create(target_key, result.data)
    if result.outcome == Outcome.REJECTED:
        raise PhotoRejected(f"{source}: {result.reason}")
    return {
        "outcome": str(result.outcome),
        "reason": result.reason,
        "output": target,
        "noise_sigma_before": result.noise_sigma_before,
        "noise_sigma_after": result.noise_sigma_after,
    }


def _promise(key: str) -> str:
    """The format that a name promises: by its extension, where we know no other name for that."""
    return promised_format(key) or Path(key).suffix.lower()


def _found(is_kind: Callable[[Path], bool], path: str) -> bool:
    """Whether there is something of a kind; raises StorageError where nobody may look."""
    try:
        return is_kind(Path(path))
    except OSError as error:
        raise StorageError(f"cannot look for {path}: {explain(error)}") from error


def _denoise_large(
    photos: PhotoDenoiser, from_store: Store, source_key: str, to_store: Store, target_key: str, *, name: str
) -> PhotoResult:
    """Of a file that memory should not hold. It is not there as a whole before it is done, so look again then."""
    with scratch_folder() as folder:
        with from_store.opened(source_key) as file:
            result = photos.denoise_file(file, name, folder / "result")
        if to_store.exists(target_key):
            raise ObjectExists(f"{target_key} is already in {to_store.url}")
        if result.file is not None:
            to_store.write_file(target_key, result.file)
        elif result.data is not None:
            to_store.create(target_key, result.data)
        return result
