"""What every verb over a collection is asked: from where, to where, which photos, and when to give up."""

from dataclasses import dataclass, field

from pipeline.cluster import ClusterConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionJob:
    """The fields of such a job; each verb adds its own.

    Attributes:
        source, target: paths or fsspec URLs of a collection of photos, and of the image set to make or go on with.
        key_table: path or URL of a table that lists the source, such as an S3 Inventory.
        where: which photos of a source that is an image set: SQL over the columns of its index.
        limit: process at most so many photos.
        sample: process that share of what is to be done, drawn by the hash of the key, and at least one photo.
        retry_failed: process inputs again that were rejected before.
        max_rejected_fraction: fail as soon as more than this share of the planned photos is rejected.
        cluster: where the work is done.
    """

    source: str
    target: str
    key_table: str | None = None
    where: str = ""
    limit: int | None = None
    sample: float | None = None
    retry_failed: bool = False
    max_rejected_fraction: float = 1.0
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected at least 1")
        if self.sample is not None and not 0 < self.sample <= 1:
            raise ValueError(f"sample is {self.sample}: expected a share, greater than 0 and at most 1")
        if not 0 <= self.max_rejected_fraction <= 1:
            raise ValueError(f"max_rejected_fraction is {self.max_rejected_fraction}: expected a number from 0 to 1")

    @property
    def is_subset(self) -> bool:
        """Whether it may leave out photos that the source has: see `Work`."""
        return self.key_table is not None or bool(self.where)
