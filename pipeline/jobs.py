"""The jobs that degrain does over collections: what each verb works with. The life of their runs is in `run`.

`python -m pipeline.jobs JOB.json` does the job of a file, and tells of it as JSON lines: see `job_file`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from model.device import count_gpus
from pipeline.collection_job import CollectionJob
from pipeline.denoise import DenoiseConfig, DenoiseWorkerFactory
from pipeline.forecast import ForecastOptions, Outlook
from pipeline.imageset import ImageSet
from pipeline.plan_file import PlanHeader
from pipeline.records import Layout, Outcome
from pipeline.registry import read_weights
from pipeline.run import do_work
from pipeline.sample import look_ahead
from pipeline.sources import open_both
from pipeline.work import Progress, Summary, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiseJob(CollectionJob):
    """What `degrain denoise` is asked to do with a collection.

    Attributes:
        weights: name of shipped weights, or a path or URL of a weights file or of a name in a registry.
        layout: how the target keeps its photos.
        denoise: how photos are denoised.
    """

    weights: str = "photo"
    layout: Layout = Layout.FILES
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)


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
        job=job,
        command="degrain denoise",
        header=PlanHeader(source=source.url, weights=weights.sha256, parameters=job.denoise.parameters),
        write_listing=lambda path: source.write_listing(path, target=target),
        target=ImageSet(target),
        layout=job.layout,
        outcomes=(Outcome.DENOISED, Outcome.UNTOUCHED, Outcome.REJECTED),
        make_worker=factory,
        cluster=job.cluster,
        is_subset=job.is_subset,
    )


if __name__ == "__main__":
    import sys

    from pipeline.job_file import main

    sys.exit(main(sys.argv[1:]))
