"""The settings of each verb as the forms of the Prefect UI and TOML files have them: described, typed, nothing unknown.

They are the fields of the jobs in `pipeline`, laid out for people; `job` is what `python -m pipeline.jobs` takes.
"""

import re
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from flows.weights_commands import place_of
from pipeline.storage import spelled_out

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Place = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]  # people paste them
DATE = "{date}"


class Layout(StrEnum):
    """How an image set keeps its photos."""

    FILES = "files"
    PACKED = "packed"


class Network(StrEnum):
    """Which architecture is trained."""

    PHOTO = "photo"
    FINE = "fine"
    SEED = "seed"


class Preset(StrEnum):
    """Which recipe training begins with. `tune` and `white` go on from weights that are good already."""

    PHOTO = "photo"
    TUNE = "tune"
    WHITE = "white"
    SEED = "seed"


class Settings(BaseModel):
    """Refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """A form takes no true for a 1: strength = true would denoise every photo, with all its might."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise PydanticCustomError("no_number", "Input should not be true or false")
        return value


class RaySettings(Settings):
    """Where the work is done, and how long it may take."""

    address: str | None = Field(
        None,
        description="URL of a Ray cluster's dashboard, http://host:8265. Empty: the one that RAY_API_SERVER_ADDRESS "
        "names where the flow runs, or if that is not set, a Ray that is started there for the run. RAY_AUTH_TOKEN is "
        "sent to the address in RAY_API_SERVER_ADDRESS and to no other.",
        pattern=r"^(https?://[^\s/?#@]+(/[^\s?#]*)?)?$",
    )
    workers: Positive | None = Field(
        None, description="Worker processes. Empty: one for each GPU or core; for a training, one."
    )
    timeout_hours: float = Field(24.0, gt=0, description="A job that takes longer is stopped, and its stage fails.")
    lost_after_s: float = Field(
        60.0, gt=0, description="The stage fails when the cluster has not answered for so many seconds."
    )

    @property
    def cluster(self) -> dict[str, object]:
        """For a job that runs on that cluster."""
        return {"address": "auto", "workers": self.workers}


class RunSettings(Settings):
    """What every verb over a collection asks."""

    source: Place = Field(description="Folder, URL (s3://bucket/folder) or image set. It is only read.")
    target: Place = Field(description="Where the image set is made, or goes on.")
    limit: Positive | None = Field(None, description="Process so many photos, and leave the rest to the next run.")
    sample: float | None = Field(None, gt=0, le=1, description="Process that share of what is to be done. Empty: all.")
    retry_failed: bool = Field(False, description="Try photos again that were rejected before.")
    notify_rejected_fraction: Fraction = Field(
        0.05, description="Send the event degrain.too-many-rejected when more than this share of a run was rejected."
    )
    max_rejected_fraction: Fraction = Field(
        1.0, description="Fail as soon as more than this share of a plan is rejected."
    )
    photo_timeout_s: float = Field(3600.0, gt=0, description="Reject photos that take longer than so many seconds.")
    key_table: str | None = Field(
        None, description="List the source by this Parquet or CSV table, or by the manifest.json of an S3 Inventory."
    )
    where: str = Field("", description='Of an image set, those photos: "iso <= 400 and megapixels >= 0.2" (SQL).')
    ray: RaySettings = Field(RaySettings(), description="Where the work is done.")

    @model_validator(mode="after")
    def _is_no_overwriting(self) -> Self:
        if spelled_out(self.source) == spelled_out(self.target):
            raise ValueError(f"source and target are both {self.source}: degrain never writes to its source")
        return self

    @property
    def run(self) -> dict[str, object]:
        """The part of a job that is the same for each verb."""
        names = ("source", "target", "limit", "sample", "retry_failed", "max_rejected_fraction", "key_table", "where")
        return {
            **{name: getattr(self, name) for name in names},
            "cluster": {**self.ray.cluster, "photo_timeout_s": self.photo_timeout_s},
        }


class DenoiseSettings(RunSettings):
    """Denoise what is new or changed in a collection."""

    weights: Place = Field("photo", description="Shipped weights by name, or a path or URL of a weights file.")
    registry: str | None = Field(
        None, description="Folder or URL of a registry that has that name. Empty: the weights that ship."
    )
    strength: Literal["auto"] | Fraction = Field(
        "auto",
        description="Follow the noise and leave clean photos as they are, or apply that share of the network's "
        "correction to every photo.",
    )
    keep_grain: bool = Field(False, description="Denoise the colour, and keep the luminance.")
    max_megapixels: float = Field(
        400.0, gt=0, description="Reject larger photos, before they are decoded; a TIFF may be larger than memory."
    )
    layout: Layout = Field(Layout.FILES, description="The same names under images/, or Parquet shards.")

    @property
    def job(self) -> dict[str, object]:
        from pipeline.images import Limits

        limits = asdict(Limits.of_megapixels(self.max_megapixels))
        denoise = {"strength": self.strength, "keeps_grain": self.keep_grain, "limits": limits}
        weights = place_of(self.weights, self.registry or None)
        return {"weights": weights, "layout": self.layout, "denoise": denoise, **self.run}


class IngestSettings(RunSettings):
    """Pack a collection into the Parquet shards of an image set."""

    resize: Positive | None = Field(
        None,
        description="Pack upright 8-bit PNGs whose shorter side has so many pixels; none is enlarged. Empty: the bytes "
        "as they are.",
    )
    min_side: Positive | None = Field(None, description="Skip photos with a side shorter than so many pixels.")

    @property
    def job(self) -> dict[str, object]:
        return {"ingest": {"resize_px": self.resize, "min_side_px": self.min_side}, **self.run}


class TrainSettings(Settings):
    """Train a network on clean photos."""

    source: Place = Field(description="Folder, URL or image set of clean photos.")
    run: Place = Field(
        description="Folder or URL of the run. One that exists goes on at its last checkpoint. {date} in it stands for "
        "the day (UTC) for which the flow run was scheduled, so that each time on a schedule is a run of its own."
    )
    preset: Preset = Field(Preset.PHOTO, description="Which recipe; what follows changes it.")
    network: Network | None = Field(None, description="Which architecture. Empty: the recipe's, as for those below.")
    steps: Positive | None = Field(None, description="Optimiser steps of the whole run.")
    batch_size: Positive | None = Field(None, description="Patches of a step.")
    patch_px: Positive | None = Field(None, description="Side of a patch in pixels.")
    halved_share: Fraction | None = Field(None, description="Share of the patches that are seen at half the size.")
    drawn_share: Fraction | None = Field(None, description="Share of the patches with flat shapes drawn on them.")
    learning_rate: float | None = Field(None, gt=0, description="Its peak.")
    cooldown_share: Fraction | None = Field(None, description="Share of the steps in which it cools down.")
    seed: int | None = Field(None, description="Of the weights, the patches and the noise.")
    where: str = Field("", description="Of an image set, those photos (SQL over its index).")
    validation_fraction: Fraction = Field(
        0.0, description="Hold back this share of the photos, the same each time, and score the weights on them."
    )
    validation: str | None = Field(None, description="Score the weights on these photos instead.")
    start_from: str | None = Field(None, description="Begin with these weights. Empty: with random ones.")
    teacher: str | None = Field(None, description="Learn the outputs of these weights in place of the clean photos.")
    data: str = Field("", description="What the card of the weights says of the photos.")
    licence: str = Field("not stated", description="What the card says of the terms.")
    checkpoint_every: Positive = Field(500, description="Steps between checkpoints; five minutes at the most.")
    log_every: Positive = Field(100, description="Steps whose mean is one point of the training curve.")
    ray: RaySettings = Field(RaySettings(), description="Where the work is done.")

    CONFIG: ClassVar = (
        "network",
        "steps",
        "batch_size",
        "patch_px",
        "halved_share",
        "drawn_share",
        "learning_rate",
        "cooldown_share",
        "seed",
    )

    @property
    def job(self) -> dict[str, object]:
        values = self.model_dump(mode="json", exclude={"ray", *self.CONFIG})
        values |= {"workers": self.ray.workers or 1, "address": "auto", "run": dated(self.run)}
        return {**values, "config": self.model_dump(mode="json", include=set(self.CONFIG), exclude_none=True)}


def dated(place: str) -> str:
    """The place, with the day (UTC) that this flow run was scheduled for in place of `{date}`, whenever it is tried."""
    if DATE not in place:
        return place
    from prefect.runtime import flow_run

    return place.replace(DATE, flow_run.scheduled_start_time.date().isoformat())


class Gates(Settings):
    """What photos of a plan, drawn at random, must show before the run starts."""

    photos: Positive = Field(16, description="Photos that are tried. Nothing of them is written.")
    max_rejected_fraction: Fraction = Field(0.1, description="Largest share of them that may be rejected.")
    max_noise_left: Fraction = Field(0.8, description="Largest median of the noise after, as a share of that before.")
    min_change_psnr_db: float = Field(
        18.0, description="No photo may be changed more than that: PSNR in dB of the result against the source."
    )
    min_megapixels_per_second: float = Field(0.0, ge=0, description="Least speed of the machine that tries them.")


class NightlySettings(Settings):
    """Denoise what came since the last night, if a canary of it goes well."""

    denoise: DenoiseSettings = Field(description="Which photos, where to, and how.")
    gates: Gates = Field(Gates(), description="What the canary must show: photos of it, drawn at random.")
    approval: bool = Field(False, description="Wait until a person has seen the canary, and resumes the run.")
    approval_hours: float = Field(12.0, gt=0, description="How long to wait for that; then the run fails.")
    report: str | None = Field(
        None,
        description="Where the page about the image set is written, ….html. Empty: beside the target, as "
        "TARGET-report.html. If the target is a whole bucket, name a place.",
        pattern=r"\.html$",
    )
    report_link_days: float = Field(
        7.0,
        ge=0,
        le=7,
        description="How long the link to a page in an S3 bucket works, for everybody who has it. It holds the "
        "credentials' key id, and of temporary ones the session's token, with which it expires; never the secret key. "
        "0: no link.",
    )
    report_link_endpoint: str | None = Field(
        None,
        description="Where browsers reach the bucket's server, http://host:port, if that is not the address that Ray "
        "uses. Empty: what DEGRAIN_LINK_ENDPOINT says where the flow runs, or if that is not set, the same address.",
        pattern=r"^https?://[^\s/?#@]+/?$",
    )

    @model_validator(mode="after")
    def _has_a_place_for_its_report(self) -> Self:
        if self.report is None and re.fullmatch(r"\w+://[^/]+/*", self.denoise.target):
            raise ValueError(f"there is no place beside {self.denoise.target}, a whole bucket: name one for the report")
        if spelled_out(self.report_place).startswith(f"{spelled_out(self.denoise.source)}/"):  # it would be a new photo
            raise ValueError(f"the report would be written into the source, {self.report_place}: name another place")
        return self

    @property
    def report_place(self) -> str:
        return self.report or f"{self.denoise.target.rstrip('/')}-report.html"


class RetrainSettings(Settings):
    """Train weights on what was ingested, and use them from now on if they are better."""

    ingest: IngestSettings = Field(description="Which photos are packed to train on.")
    train: TrainSettings = Field(description="What is trained on them.")
    held_out: Place = Field(description="Clean photos that neither the old nor the new weights were trained on.")
    held_out_photos: Positive | None = Field(None, description="The first so many of them. Empty: all.")
    promoted: str = Field(
        description="Weights in use: path or URL of a file ….safetensors that the better ones are put into, or of a "
        "name in a registry, …/weights/NAME.",
        pattern=r"\.safetensors$|(^|/)weights/[^/]+$",
    )
    incumbent: str | None = Field(
        None, description="Weights to compare with while there are none at that place. Empty: those that ship."
    )
    min_gain_db: float = Field(0.02, description="Promote only if the mean gain over the trials grows by so many dB.")
    max_loss_db: float = Field(0.2, ge=0, description="Promote only if no trial loses more than so many dB.")
    ray: RaySettings = Field(RaySettings(), description="Where the evaluations are done.")


Verb = Literal["plan", "canary", "denoise", "ingest", "verify", "report", "train", "evaluate", "incumbent", "promote"]
Values = dict[str, Any]  # Any: JSON
