"""Who gets a name in a registry: weights that score no worse than those that have it, or for a reason that is told."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.metrics import MOST_DB
from model.weights import shipped_names
from pipeline.comparison import Comparison, compare
from pipeline.errors import ObjectMissing, PromotionRefused
from pipeline.evaluate import EvaluateJob, Steps, run_evaluate
from pipeline.registry import FOLDER, SUFFIX, Pointer, Registry, check_name, open_registry, read_weights
from pipeline.scores import Row
from pipeline.storage import open_store, split_url

LARGEST_LOSS_DB = 0.1  # in one trial; the mean of all may lose nothing
SAME_NOISE_DB = 0.01  # photos that are this close in PSNR, before denoising, were given the same noise


@dataclass(frozen=True, slots=True, kw_only=True)
class NameJob:
    """What `degrain weights promote` is asked to do.

    Attributes:
        weights: name, path or URL of the weights; or in this registry their hash, or its first digits.
        name: what they are to be called.
        registry: path or URL of the registry.
        on: clean photos to measure them on, and those that have the name now.
        limit: the first so many of those photos only.
        scores: path or URL of the scores.json of an evaluation of them; those that have the name now are looked up in
            it, and then in the registry.
        because: why they get the name though they score worse, or were not compared.
        instead_of: sha256 of the weights that they were compared with elsewhere: if others have the name, they do not
            get it. None asks nothing.
        gains_db: by trial, how much better they were there.
    """

    weights: str
    name: str
    registry: str
    on: str | None = None
    limit: int | None = None
    scores: str | None = None
    because: str = ""
    instead_of: str | None = None
    gains_db: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.on is not None and self.scores is not None:
            raise ValueError("the scores are either given or measured: name a scores.json or photos, and not both")
        if self.limit is not None and self.on is None:
            raise ValueError(f"limit is {self.limit}, and there are no photos to measure on: name them by on")


Evaluated = Mapping[str, Any]  # Any: what `Evaluation.as_dict` makes, maybe read from a file


def give_name(
    job: NameJob,
    report: Callable[[Row], None] = lambda _row: None,
    watch: Callable[[Steps], None] = lambda _steps: None,
) -> Pointer:
    """Copy weights into the registry, and point the name to them. May run again: they are pointed to once.

    Raises:
        ValueError: there are no such weights, photos or scores, or the scores are of others.
        PromotionRefused: they score worse than those that have the name, or were not compared with them, and no reason
            is given; or someone else was first. The name stays where it was.
        RegistryError: the registry does not hold what it says.
    """
    registry = open_registry(job.registry)
    reference = _reference(job, registry)
    data, weights = read_weights(reference)
    weights.networks()  # tensors that do not fit their card are found here, and not by who uses them
    history = registry.history(job.name)
    incumbent = history[-1].sha256 if history else ""
    _refuse_read_only(registry, job.name)
    if incumbent == weights.sha256:
        return history[-1]
    refuse_moved(job.name, incumbent, job.instead_of)

    evaluated: Evaluated | None = None
    if job.on is not None:
        against = (f"{registry.store.url}/{FOLDER}/{incumbent}",) if incumbent else ()
        asked = EvaluateJob(weights=reference, photos=job.on, against=against, limit=job.limit)
        evaluated = run_evaluate(asked, report, watch).as_dict()
    elif job.scores is not None:
        evaluated = _read_scores(job.scores, weights.sha256)
    gains_db = _judge(job, weights.sha256, incumbent, evaluated, registry) if incumbent else {}
    registry.add(data)
    pointer = Pointer(
        sha256=weights.sha256,
        number=history[-1].number + 1 if history else 1,
        before=incumbent,
        because=job.because,
        gains_db=gains_db,
        scores=_keep_scores(registry, evaluated, weights.sha256, incumbent),
    )
    try:
        return registry.point(job.name, pointer)
    finally:
        registry.store.close()


def refuse_moved(place: str, incumbent: str, expected: str | None) -> None:
    """Refuse to replace weights that nobody compared the new ones with.

    Args:
        place: the name, or the file.
        incumbent: sha256 of what is there; empty while nothing is.
        expected: sha256 of what they were compared with, or None.

    Raises:
        PromotionRefused: there are others.
    """
    if incumbent and expected is not None and incumbent != expected:
        raise PromotionRefused(
            f"'{place}' was given to {incumbent[:16]} meanwhile, and the weights were compared with {expected[:16]}"
        )


def _reference(job: NameJob, registry: Registry) -> str:
    """The weights, as a path or URL unless they ship, and none in the registry have that name."""
    ships = job.weights in shipped_names() and job.weights not in registry.names()
    if ships or "/" in job.weights or job.weights.endswith(SUFFIX):
        return job.weights
    return f"{registry.store.url}/{FOLDER}/{job.weights}"


def _refuse_read_only(registry: Registry, name: str) -> None:
    if registry.store.url == open_registry(None).store.url:
        raise ValueError("the weights that ship with degrain are only read: name another registry")
    key = f"{FOLDER}/{name}{SUFFIX}"
    if registry.store.exists(key):
        raise ValueError(
            f"'{name}' of {registry.store.url} is the file {key}, and points nowhere else: take another name"
        )


def _judge(
    job: NameJob, sha256: str, incumbent: str, evaluated: Evaluated | None, registry: Registry
) -> dict[str, float]:
    """By trial, how much better than the incumbent the weights are.

    Raises:
        PromotionRefused: they are worse, or that is not known, and there is no reason to promote them.
    """
    found = _compare(sha256, incumbent, evaluated, registry)
    problem = _problem(found, sha256, incumbent, job.name)
    if problem and not job.because.strip():
        raise PromotionRefused(f"{problem}; to promote them nevertheless, say why (--because)")
    return found.gains_db if found else dict(job.gains_db)


def _keep_scores(registry: Registry, evaluated: Evaluated | None, sha256: str, incumbent: str) -> str:
    """Keep what was measured of both; returns the key of what was measured of the weights."""
    if evaluated is None:
        return ""
    if _rows(evaluated, incumbent):
        registry.add_scores(incumbent, _bytes(_own(evaluated, incumbent)))
    return registry.add_scores(sha256, _bytes(_own(evaluated, sha256)))


def _read_scores(url: str, sha256: str) -> Evaluated:
    root, key = split_url(url)
    try:
        values: Evaluated = json.loads(open_store(root).read(key))
        _check_scores(values)
        if _rows(values, sha256):
            return values
        of = ", ".join(f"{name} ({other[:16]})" for name, other in values["weights"].items())
    except ObjectMissing as error:
        raise ValueError(f"there are no scores at {url}") from error
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{url} is no scores.json of degrain evaluate: {error}") from error
    raise ValueError(f"{url} has scores of {of}, and none of {sha256[:16]}: evaluate these weights")


def _check_scores(values: Evaluated) -> None:
    """Raises KeyError, TypeError, AttributeError or ValueError unless all that is asked of scores is there."""
    for row in values["rows"]:
        _ = {row["trial"], row["denoiser"], row["weights"], row["gain_db"] + 0.0, row["noisy_psnr_db"] + 0.0}
    _ = values["photos_sha256"], values["weights"].items(), {score["denoiser"] for score in values["scores"]}


def _compare(sha256: str, incumbent: str, evaluated: Evaluated | None, registry: Registry) -> Comparison | None:
    """By the same evaluation if it has both, or by one of the registry on the same photos with the same noise.

    What they do to clean photos alone is no comparison: to leave them as they are, nothing has to be learnt.
    """
    if evaluated is None:
        return None
    for other in (evaluated, *registry.scores_of(incumbent)):
        ours, theirs = _rows(evaluated, sha256), _rows(other, incumbent)
        same = _same_noise(ours, theirs) if other["photos_sha256"] == evaluated["photos_sha256"] else []
        if any(row["noisy_psnr_db"] < MOST_DB for row in same):
            return compare(ours, same, least_mean_db=0.0, largest_loss_db=LARGEST_LOSS_DB)
    return None


def _same_noise(ours: Sequence[Evaluated], theirs: Sequence[Evaluated]) -> list[Evaluated]:
    noisy_db = {row["trial"]: row["noisy_psnr_db"] for row in ours}
    return [row for row in theirs if abs(noisy_db.get(row["trial"], 1e9) - row["noisy_psnr_db"]) <= SAME_NOISE_DB]


def _problem(found: Comparison | None, sha256: str, incumbent: str, name: str) -> str:
    """What speaks against the promotion; empty if nothing does."""
    if found is None:
        return (
            f"{sha256[:16]} was not compared with {incumbent[:16]}, which is '{name}' now: name photos to measure both "
            "on (--on SET), or scores of both (--scores FILE)"
        )
    if found.is_better:
        return ""
    worst = min(found.gains_db, key=lambda trial: found.gains_db[trial])
    return (
        f"{sha256[:16]} scores worse than {incumbent[:16]}, which is '{name}' now: by {found.mean_db:+.2f} dB in the "
        f"mean of {len(found.gains_db)} trials, and {found.worst_db:+.2f} dB in '{worst}'"
    )


def _rows(evaluated: Evaluated, sha256: str) -> list[Evaluated]:
    return [row for row in evaluated["rows"] if row["weights"] == sha256]


def _own(evaluated: Evaluated, sha256: str) -> dict[str, object]:
    """What the evaluation says of these weights."""
    names = {name for name, other in evaluated["weights"].items() if other == sha256}
    return {
        **evaluated,
        "weights": dict.fromkeys(names, sha256),
        "rows": _rows(evaluated, sha256),
        "scores": [score for score in evaluated["scores"] if score["denoiser"] in names],
    }


def _bytes(evaluated: Mapping[str, object]) -> bytes:
    return json.dumps(evaluated, ensure_ascii=False).encode()
