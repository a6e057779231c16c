"""What `degrain train` works with: the job, and the photos that it names."""

from dataclasses import dataclass, field
from itertools import product

import pyarrow as pa

from model.recipe import TrainConfig
from model.weights import Part
from pipeline.clean_photos import CleanPhotos, find_clean_photos
from pipeline.sources import Source, photos_of
from pipeline.storage import open_store, prefix_in
from pipeline.subset import Split, Subset

TENSORBOARD, PICTURES = "tensorboard", "validation"  # what a run writes beside its files, in folders


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What `degrain train` is asked to do.

    Attributes:
        source: path or URL of the collection of clean photos.
        run: path or URL of the run's folder; a run that is there goes on at its last checkpoint.
        where: a condition over the columns of the source's index, where that is an image set: which photos to use.
        validation_fraction: share of the source that is held back from training, the same photos in every run; the
            weights are scored on them if there is no other collection for it.
        validation: collection that the weights are scored on, now and then and at the end, by white Gaussian noise in
            the protocol of papers; the card holds the scores.
        start_from: weights to begin with, by name, path or URL; None begins with random ones. Where their network for
            white noise is of another architecture, a new one for it begins with random ones, too; and a general one
            begins with theirs for white noise where only that is of its architecture.
        teacher: weights whose answers are learnt in place of the clean photos, by name, path or URL (see
            `model.teacher`); None learns from the photos alone.
        data, licence: what the card says of the photos, and under which terms the weights may be used.
        workers: processes that share each batch, on a Ray cluster if there are several. Fewer go on if some are lost.
        address: of a Ray cluster to join; None starts one on this machine where it is needed.
        use_gpus: whether workers get a GPU each, where there are any.
        checkpoint_every: steps between checkpoints; there is one every five minutes besides.
        validate_every: steps between two looks at a few photos of the validation.
        log_every: steps whose mean makes one row of the metrics; fewer where a look at the validation comes between, or
            where the run goes on, as its first row is of the steps since the checkpoint.
        max_failures: how often a run goes on after it has lost a worker.
    """

    source: str
    run: str
    where: str = ""
    validation_fraction: float = 0.0
    validation: str | None = None
    start_from: str | None = None
    teacher: str | None = None
    data: str = ""
    licence: str = "not stated"
    workers: int = 1
    address: str | None = None
    use_gpus: bool = True
    checkpoint_every: int = 500
    validate_every: int = 2000
    log_every: int = 100
    max_failures: int = 8
    config: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        for name in ("checkpoint_every", "validate_every", "log_every"):
            if (steps := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {steps}: expected at least 1")
        self.subset(Split.TRAIN)
        if self.config.part != Part.GENERAL and self.start_from is None:
            raise ValueError(
                "start_from is not set: expected weights whose general network stays beside the one that is trained, "
                f"which is for {self.config.part} noise alone"
            )
        if not 1 <= self.workers <= self.config.parts:
            raise ValueError(
                f"workers is {self.workers}: expected 1 to {self.config.parts}, the parts that a batch of "
                f"{self.config.batch_size} patches has; for more of them, take a batch_size of 4 for each worker"
            )

    def find_photos(self) -> tuple[Source, pa.Table]:
        """Where the photos to train on are, and which.

        Raises:
            ValueError: there are none, or the run would write among them.
            StorageError: they cannot be read.
        """
        source = photos_of(open_store(self.source), self.subset(Split.TRAIN))
        run = open_store(self.run)
        written = [run, *(open_store(f"{run.url}/{name}") for name in (PICTURES, TENSORBOARD))]
        for place, store in product(written, map(open_store, filter(None, (self.source, self.validation)))):
            if prefix_in(place, store) is not None:
                raise ValueError(
                    f"the run writes to {place.url}, which lies in the photos {store.url}: name a folder outside of "
                    "them"
                )
        photos = source.table()
        if not len(photos):
            raise ValueError(f"there are no photos to train on in {self.source}")
        return source, photos

    def subset(self, split: Split) -> Subset:
        """The photos of the source that are for training, or for validation."""
        return Subset(where=self.where, split=split, validation_fraction=self.validation_fraction)

    def find_validation(self) -> CleanPhotos | None:
        """The photos that weights are scored on, if any were asked for.

        Raises:
            ValueError: of those that train, the share that was asked for has none.
            StorageError: they cannot be listed.
        """
        if self.validation is not None:
            return find_clean_photos(self.validation)
        if not self.validation_fraction:
            return None
        found = find_clean_photos(self.source, self.subset(Split.VALIDATION))
        if not len(found.photos):
            raise ValueError(
                f"validation_fraction is {self.validation_fraction:g}, which holds none of the photos of "
                f"{self.source} back: ask for more of them"
            )
        return found
