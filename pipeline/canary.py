"""Before a run: what it would do, and a canary: photos of it drawn at random, processed, and not written anywhere."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.device import count_gpus
from pipeline.forecast import ForecastOptions, Outlook
from pipeline.highlights import MAX_PICTURE_PIXELS, MAX_PICTURES, Picture, draw_picture
from pipeline.jobs import DenoiseJob, denoise_work, forecast_denoise
from pipeline.records import Outcome
from pipeline.run import planned
from pipeline.sample import Tried, find_machine, try_photos
from pipeline.shard import PhotoResult


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanJob:
    """What a run would do now; `forecast` says how large a sample is measured for what it will take."""

    denoise: DenoiseJob
    forecast: ForecastOptions = field(default_factory=lambda: ForecastOptions(sample_photos=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryJob:
    """A run to try out.

    Attributes:
        denoise: the run.
        photos: how many of its photos are tried.
    """

    denoise: DenoiseJob
    photos: int = 16

    def __post_init__(self) -> None:
        if self.photos < 1:
            raise ValueError(f"photos is {self.photos}: expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """How photos of a run would end.

    Attributes:
        reasons: why photos were rejected, with counts.
        noise_left: median of the estimated noise after, as a share of that before; None where nothing was denoised.
        worst_change_psnr_db: of the photo that was changed most; None where none was changed.
        megapixels_per_second: of decoding, denoising and encoding on this machine.
    """

    photos: int
    outcomes: dict[Outcome, int]
    reasons: dict[str, int]
    noise_left: float | None
    worst_change_psnr_db: float | None
    megapixels_per_second: float
    pictures: list[Picture]

    def as_dict(self) -> dict[str, object]:
        """All but the pictures, with a count for each outcome beside the rest."""
        values = {key: getattr(self, key) for key in Canary.__slots__ if key not in ("outcomes", "pictures")}
        return {**{str(outcome): count for outcome, count in self.outcomes.items()}, **values}


def run_plan(job: PlanJob) -> dict[str, object]:
    """The outlook of a run, as JSON has it. Writes nothing to the target.

    Raises:
        ValueError: see `run_denoise`.
    """
    outlook: Outlook = forecast_denoise(job.denoise, job.forecast)
    return outlook.as_dict()


def run_canary(job: CanaryJob) -> Canary:
    """Process photos of a run that are drawn at random, as its workers would. Writes nothing to the target.

    Raises:
        ValueError: see `run_denoise`.
        StorageError, RunFailed: see `try_photos`.
    """
    work = denoise_work(job.denoise)
    machine = find_machine(dataclasses.replace(work.cluster, workers=None), gpus=count_gpus())
    with planned(work) as (_, plans):
        tried = try_photos(work, plans, machine, photos=job.photos)
    results = [result for _, result in tried.results]
    rejected = [str(result.reason) for result in results if result.outcome == Outcome.REJECTED]
    changes_db = [result.change_psnr_db for result in results if result.change_psnr_db is not None]
    megapixels = sum(result.header.pixels for result in results if result.header is not None) / 1e6
    return Canary(
        photos=len(results),
        outcomes={outcome: sum(result.outcome == outcome for result in results) for outcome in work.outcomes},
        reasons=dict(Counter(rejected)),
        noise_left=_noise_left(results),
        worst_change_psnr_db=round(min(changes_db), 2) if changes_db else None,
        megapixels_per_second=round(megapixels / tried.process_s, 3) if tried.process_s else 0.0,
        pictures=_pictures(tried),
    )


def _noise_left(results: Sequence[PhotoResult]) -> float | None:
    """The median over photos that had noise to speak of: less than one level is lost in the rounding of a file."""
    shares = [
        result.noise_sigma_after / result.noise_sigma_before
        for result in results
        if result.outcome == Outcome.DENOISED
        and result.noise_sigma_before is not None
        and result.noise_sigma_after is not None
        and result.noise_sigma_before >= 1
    ]
    return round(statistics.median(shares), 4) if shares else None


def _pictures(tried: Tried) -> list[Picture]:
    """Of the noisiest photos that are not huge: a picture that cannot be drawn fails nothing."""
    noisiest = sorted(
        ((photo, result) for photo, result in tried.results if result.outcome == Outcome.DENOISED),
        key=lambda each: each[1].noise_sigma_before or 0.0,
        reverse=True,
    )
    drawable = [each for each in noisiest if (header := each[1].header) and header.pixels <= MAX_PICTURE_PIXELS]
    drawn = (
        draw_picture(
            photo.key,
            tried.data[photo.key],
            result.data or b"",
            sigma_before=result.noise_sigma_before or 0.0,
            sigma_after=result.noise_sigma_after or 0.0,
        )
        for photo, result in drawable[:MAX_PICTURES]
    )
    return [picture for picture in drawn if picture is not None]
