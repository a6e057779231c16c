"""The jobs that degrain does over collections: what each verb works with. The life of their runs is in `run`.

`python -m pipeline.jobs JOB.json` does the job of a file, and tells of it as JSON lines: see `job_file`.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from model.denoiser import count_gpus
from pipeline.cluster import ClusterConfig
from pipeline.denoise import DenoiseConfig, DenoiseWorkerFactory
from pipeline.forecast import ForecastOptions, Outlook
from pipeline.imageset import ImageSet
from pipeline.planning import PlanHeader
from pipeline.records import Layout, Outcome
from pipeline.registry import read_weights
from pipeline.run import Progress, Summary, Work, do_work
from pipeline.sample import look_ahead
from pipeline.sources import open_both


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseJob:
    """What `degrain denoise` is asked to do with a collection.

    Attributes:
        source, target: paths or fsspec URLs of a collection of photos, and of the image set to make or go on with.
        weights: name of shipped weights, or a path or URL of a weights file or of a name in a registry.
        layout: how the target keeps its photos.
        limit, sample, retry_failed, max_rejected_fraction: as in `Work`.
        key_table: path or URL of a table that lists the source, such as an S3 Inventory.
        where: which photos of a source that is an image set: SQL over the columns of its index.
    """

    source: str
    target: str
    weights: str = "photo"
    layout: Layout = Layout.FILES
    limit: int | None = None
    sample: float | None = None
    retry_failed: bool = False
    max_rejected_fraction: float = 1.0
    key_table: str | None = None
    where: str = ""
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


def forecast_denoise(job: DenoiseJob, options: ForecastOptions) -> Outlook:
    """What `run_denoise` would do now, and what it will take by a sample of the photos. Writes nothing to the target.

    Raises:
        ValueError: see `run_denoise`.
        StorageError: the source cannot be read.
    """
    return look_ahead(denoise_work(job), options, gpus=count_gpus())


def run_denoise(job: DenoiseJob, report: Callable[[Progress], None]) -> Summary:
    """Denoise what is new or changed in the source, and publish it in the target.

    Raises:
        ValueError: the source does not exist or is empty, the weights are unknown, the target is otherwise in use.
        DegrainError: the run had to stop; what is committed stays.
    """
    return do_work(denoise_work(job), report)


def denoise_work(job: DenoiseJob) -> Work:
    """The run that a job is.

    Raises:
        ValueError: see `run_denoise`.
    """
    source, target = open_both(job.source, job.target, key_table=job.key_table, where=job.where)
    weights_bytes, weights = read_weights(job.weights)
    weights.networks()  # tensors that do not fit their card are found here, and not by every worker
    factory = DenoiseWorkerFactory(
        source=source.url,
        knows_hashes=source.image_set is not None,
        target=target.url,
        layout=job.layout,
        weights=weights_bytes,
        config=job.denoise,
    )
    return Work(
        command="degrain denoise",
        header=PlanHeader(source=source.url, weights=weights.sha256, parameters=job.denoise.parameters),
        write_listing=lambda path: source.write_listing(path, target=target),
        target=ImageSet(target),
        layout=job.layout,
        outcomes=(Outcome.DENOISED, Outcome.UNTOUCHED, Outcome.REJECTED),
        make_worker=factory,
        limit=job.limit,
        sample=job.sample,
        is_subset=job.key_table is not None or bool(job.where),
        lists_gone=job.key_table is not None,
        retry_failed=job.retry_failed,
        max_rejected_fraction=job.max_rejected_fraction,
        cluster=job.cluster,
        settings=dataclasses.asdict(job),
    )


if __name__ == "__main__":
    import sys

    from pipeline.job_file import main

    sys.exit(main(sys.argv[1:]))
