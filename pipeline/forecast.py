"""How long a run will take, what it will ask of storage and what it costs, by a measured sample of its photos. Pure."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.index import PART_ROWS
from pipeline.planning import Amount, PlanCounts
from pipeline.records import Layout, Outcome

LIST_PAGE = 1000  # objects of a listing that a store sends at once
RESAMPLES = 2000
SHORTEST_S = 1e-6  # that a clock can tell
PERCENTILES = (2.5, 97.5)
STAGES = ("decode", "denoise", "measure", "encode")

Rates = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a run works with: one machine, or several that are like this one.

    Attributes:
        hosts: how many machines.
        workers, cores, gpus: of all of them together.
        shards_per_worker: shards that a worker has in hand at once: while one denoises, others decode or encode.
    """

    workers: int
    cores: int
    gpus: int = 0
    hosts: int = 1
    shards_per_worker: int = 2

    @property
    def threads(self) -> int:
        """Cores that the network of a worker has."""
        return max(1, self.cores // self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPhoto:
    """What became of a photo, and the seconds that each stage took."""

    size_bytes: int
    outcome: Outcome
    megapixels: float = 0.0
    output_bytes: int = 0
    stage_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Photos drawn at random from a plan, and processed as its workers will; at least one.

    Attributes:
        read_bytes_per_s: of their files, some being read ahead, as a worker does.
        is_on_gpu: whether the network ran on one.
    """

    photos: tuple[SampledPhoto, ...]
    read_bytes_per_s: float
    is_on_gpu: bool = False

    @property
    def size_bytes(self) -> int:
        return sum(photo.size_bytes for photo in self.photos)

    @property
    def megapixels(self) -> float:
        return sum(photo.megapixels for photo in self.photos)

    def seconds(self, *stages: str) -> float:
        return sum(photo.stage_s.get(stage, 0.0) for photo in self.photos for stage in stages)

    def as_dict(self) -> dict[str, object]:
        outcomes = Counter(str(photo.outcome) for photo in self.photos)
        return {
            "photos": len(self.photos),
            "size_bytes": self.size_bytes,
            "megapixels": self.megapixels,
            **outcomes,
            **{f"{stage}_s": self.seconds(stage) for stage in STAGES},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastOptions:
    """What a forecast is made of.

    Attributes:
        sample_photos: photos that are drawn and measured; 0 for no forecast.
        gpu_megapixels_per_s: speed of a GPU, where there is none to measure.
        price_per_hour: of all that the run works with.
    """

    sample_photos: int = 16
    gpu_megapixels_per_s: float | None = None
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        if self.sample_photos < 0:
            raise ValueError(f"sample_photos is {self.sample_photos}: expected at least 0")
        for name in ("gpu_megapixels_per_s", "price_per_hour"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}: expected a number above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What a run asks of storage. `put` includes the commits."""

    list: int
    get: int
    put: int
    commits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will take.

    Attributes:
        hours: of the work on photos; by 95 of 100 resamples of the sample it is `hours_low` to `hours_high`.
        stage_hours: what each stage would take by itself.
        bottleneck: the stage that would take longest.
        cores_per_gpu: that do all but the network as fast as one GPU does that; None where a GPU's speed is not known.
        money: for those hours; None without a price.
    """

    megapixels: float
    bytes_in: int
    bytes_out: int
    hours: float
    hours_low: float
    hours_high: float
    stage_hours: dict[str, float]
    bottleneck: str
    requests: Requests
    gpu_megapixels_per_s: float | None
    cores_per_gpu: float | None
    money: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What a plan holds, and what it will take; without a sample, that is not known."""

    counts: PlanCounts
    machine: Machine
    options: ForecastOptions
    sample: Sample | None = None
    forecast: Forecast | None = None

    def as_dict(self) -> dict[str, object]:
        """As `--json` prints it."""
        amounts = {
            str(name): {**asdict(amount), "megapixels": megapixels(amount, self.sample)}
            for name, amount in [*self.counts.amounts.items(), ("to_do", self.counts.planned)]
        }
        return {
            "photos": amounts,
            "shards": self.counts.shards,
            "is_complete": self.counts.is_complete,
            "unfinished_runs": self.counts.unfinished_runs,
            "machine": asdict(self.machine),
            "sample": None if self.sample is None else self.sample.as_dict(),
            "forecast": None if self.forecast is None else asdict(self.forecast),
        }


def make_forecast(
    counts: PlanCounts, sample: Sample, machine: Machine, layout: Layout, options: ForecastOptions
) -> Forecast:
    """What the planned photos will take if they are like the sample, byte for byte of their files."""
    todo = counts.planned
    whole = _rates(sample, np.ones((1, len(sample.photos))))
    draws = np.random.default_rng(0).multinomial(len(sample.photos), _evenly(len(sample.photos)), RESAMPLES)
    stage_hours = {stage: float(hours[0]) for stage, hours in _stage_hours(whole, todo, sample, machine).items()}
    hours = float(_hours(whole, todo, sample, machine)[0])
    low, high = np.percentile(_hours(_rates(sample, draws), todo, sample, machine), PERCENTILES)
    gpu_rate = options.gpu_megapixels_per_s
    if sample.is_on_gpu and sample.seconds("denoise") > SHORTEST_S:
        gpu_rate = sample.megapixels / sample.seconds("denoise")
    beside_s = sample.seconds("decode", "measure", "encode")
    return Forecast(
        megapixels=megapixels(todo, sample),
        bytes_in=todo.size_bytes,
        bytes_out=round(float(whole["output_bytes"][0]) * todo.size_bytes),
        hours=hours,
        hours_low=min(hours, float(low)),
        hours_high=max(hours, float(high)),
        stage_hours=stage_hours,
        bottleneck=max(stage_hours, key=lambda stage: stage_hours[stage]),
        requests=_requests(counts, sample, layout),
        gpu_megapixels_per_s=gpu_rate,
        cores_per_gpu=gpu_rate * beside_s / sample.megapixels if gpu_rate and sample.megapixels else None,
        money=None if options.price_per_hour is None else hours * options.price_per_hour,
    )


def megapixels(amount: Amount, sample: Sample | None) -> float:
    """Of photos: of those that have been opened as they are, and of the others as many a byte as in the sample."""
    if sample is None or not sample.size_bytes:
        return amount.megapixels
    return amount.megapixels + amount.unopened_bytes * sample.megapixels / sample.size_bytes


def format_outlook(outlook: Outlook) -> str:
    """The table of a plan, and the forecast below it, where there is one."""
    counts, sample, forecast = outlook.counts, outlook.sample, outlook.forecast
    lines = [f"{'':12} {'photos':>12} {'MB':>14} {'megapixels':>14}"]
    for name, amount in [*counts.amounts.items(), ("to do", counts.planned)]:
        size = f"{megapixels(amount, sample):,.1f}"
        if amount.unopened_bytes:
            size = "?" if sample is None else f"~ {size}"
        lines.append(f"{name.replace('_', ' '):12} {amount.photos:12,} {amount.size_bytes / 1e6:14,.1f} {size:>14}")
    if sample is None or forecast is None:
        return "\n".join(lines)
    outcomes = [str(photo.outcome) for photo in sample.photos]
    told = ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in dict.fromkeys(outcomes))
    hosts = f" on {outlook.machine.hosts:,} machines like this one" if outlook.machine.hosts > 1 else ""
    within = f"{_time(forecast.hours_low)} to {_time(forecast.hours_high)}"
    alone = ", ".join(f"{stage} {_time(hours)}" for stage, hours in forecast.stage_hours.items() if hours)
    asked = forecast.requests
    facts = {
        "sample": f"{len(outcomes)} photos, {sample.megapixels:,.1f} megapixels: {told}",
        "time": f"{_time(forecast.hours)} ({within}) with {outlook.machine.workers:,} workers{hosts}",
        "bottleneck": f"{forecast.bottleneck} (each by itself: {alone})",
        "requests": f"{asked.list:,} LIST, {asked.get:,} GET, {asked.put:,} PUT ({asked.commits:,} commits)",
        "transfer": f"{forecast.bytes_in / 1e9:,.2f} GB in, {forecast.bytes_out / 1e9:,.2f} GB out",
    }
    if forecast.cores_per_gpu is not None:
        facts["cores a GPU"] = (
            f"{forecast.cores_per_gpu:,.1f} to feed {forecast.gpu_megapixels_per_s:,.1f} megapixels/s"
        )
    if forecast.money is not None:
        facts["money"] = f"{forecast.money:,.2f} at {outlook.options.price_per_hour:,.2f} an hour"
    return "\n".join([*lines, "", *(f"{name:12} {text}" for name, text in facts.items())])


def _rates(sample: Sample, draws: NDArray[np.generic]) -> Rates:
    """Seconds of each stage, and bytes of the results, for each byte of the source; by resample.

    Args:
        draws: (resamples, photos): how often each photo counts.
    """
    sizes = draws @ np.array([photo.size_bytes for photo in sample.photos], np.float64)
    totals = {stage: [photo.stage_s.get(stage, 0.0) for photo in sample.photos] for stage in STAGES}
    totals["output_bytes"] = [photo.output_bytes for photo in sample.photos]
    return {name: draws @ np.array(values, np.float64) / np.maximum(sizes, 1) for name, values in totals.items()}


def _evenly(count: int) -> NDArray[np.float64]:
    return np.full(count, 1 / count)


def _stage_hours(rates: Rates, todo: Amount, sample: Sample, machine: Machine) -> Rates:
    """Hours that each stage takes by itself, on all that it can use."""
    size = todo.size_bytes / 3600
    hours = {stage: rates[stage] * size / machine.cores for stage in STAGES}
    if sample.is_on_gpu:
        hours["denoise"] = rates["denoise"] * size / max(1, machine.gpus)
    else:
        hours["denoise"] = hours["denoise"] * machine.threads
    transferred = (1 + rates["output_bytes"]) * size  # to write is taken for as fast as to read
    hours["transfer"] = transferred / (sample.read_bytes_per_s * machine.hosts)
    return hours


def _hours(rates: Rates, todo: Amount, sample: Sample, machine: Machine) -> NDArray[np.float64]:
    """Hours of the whole: what is scarcest is always busy, be it cores, GPUs, the network, or the shards in hand."""
    hours = _stage_hours(rates, todo, sample, machine)
    on_cores = [hours[stage] for stage in STAGES if not (sample.is_on_gpu and stage == "denoise")]
    in_hand = np.sum([rates[stage] for stage in STAGES], axis=0) * todo.size_bytes / 3600
    bounds = [
        np.sum(on_cores, axis=0),
        hours["denoise"],
        hours["transfer"],
        in_hand / (machine.workers * machine.shards_per_worker),
    ]
    return np.asarray(np.max(bounds, axis=0), np.float64)


def _requests(counts: PlanCounts, sample: Sample, layout: Layout) -> Requests:
    photos, listed = counts.planned.photos, sum(amount.photos for amount in counts.amounts.values())
    written = sum(photo.output_bytes > 0 for photo in sample.photos) / len(sample.photos)
    payload = round(written * photos) if layout == Layout.FILES else counts.shards
    published = math.ceil(listed / PART_ROWS) + 3  # beside the index, a plan, the record of the run and the manifest
    return Requests(
        list=math.ceil(listed / LIST_PAGE), get=photos, put=payload + counts.shards + published, commits=counts.shards
    )


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3600:.1f} s"
