"""What to do next about a shard whose worker died, took too long, or was lost with its node. Pure.

A shard whose worker died twice is searched for the photo that ends its process: first those that were in work then, and
if it is none of them, all others, each alone with a worker. A photo that is found becomes a row, and the shard goes on.
"""

import logging
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from pipeline.errors import RunFailed
from pipeline.records import PlannedPhoto, ShardPlan

log = logging.getLogger(__name__)

DEATHS_BEFORE_SEARCH = 2
DEATHS_BEFORE_FAILURE = 6  # without a photo being found that is to blame: by then it is not the photos
LOSSES_LIKE_A_DEATH = 3  # nodes that went under a shard: the next may do so because of it
POISON_REASON = "its processing ended the worker's process (a crash or too much memory), each time it was tried"
TOO_SLOW_REASON = "its processing took longer than {:g} s, the limit for one photo"


class End(Enum):
    """Why a call ended without a result."""

    DIED = auto()  # its worker did
    TOO_SLOW = auto()  # a photo of it took too long, and its worker was ended
    NODE_LOST = auto()
    LOST = auto()  # its worker was ended for the sake of another shard


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended without a result, and the photos that may be to blame.

    `is_certain` where it can be no other: the photo had the worker for itself.
    """

    end: End
    suspects: frozenset[str] = frozenset()
    is_certain: bool = False


@dataclass(slots=True)
class Case:
    """A shard and what has befallen it.

    Attributes:
        photo_timeout_s: a photo that takes longer, alone, is to blame; one that shares its worker is suspected.
        false_alarms: each doubles that time for suspicion.
        deaths: since a photo was last found to be to blame.
        to_probe: photos of the part that is searched now; `to_search` holds the parts that come after it.
        poisonous: photos that are to blame, with the reason.
    """

    plan: ShardPlan
    photo_timeout_s: float = float("inf")
    false_alarms: int = 0
    deaths: int = 0
    losses: int = 0
    to_probe: int = 0
    to_search: deque[list[PlannedPhoto]] = field(default_factory=deque)
    poisonous: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Task:
    """A call to a worker: the whole shard, or one photo of it to see whether the worker survives."""

    case: Case
    photo: PlannedPhoto | None = None
    is_second_try: bool = False  # a death may be bad luck, two are the photo's

    @property
    def is_alone(self) -> bool:
        """Whether it wants a worker for itself: only then is a death its own, and not its neighbour's."""
        return self.photo is not None or self.case.deaths > 0

    @property
    def photo_timeout_s(self) -> float:
        return self.case.photo_timeout_s * (1 if self.photo is not None else 2**self.case.false_alarms)

    @property
    def photos(self) -> Collection[PlannedPhoto]:
        return self.case.plan.photos if self.photo is None else (self.photo,)


def after(task: Task, ending: Ending | None) -> list[Task]:
    """What to do next about a shard after a call that gave no receipt: a probe that went well, or what failed.

    Raises:
        RunFailed: its workers die, and no photo of it is to blame.
    """
    case = task.case
    end = None if ending is None else ending.end
    if end == End.NODE_LOST:
        case.losses += 1
        end = End.LOST if case.losses % LOSSES_LIKE_A_DEATH else End.DIED
    if end == End.LOST:
        return [task]
    if task.photo is not None:
        return _after_probe(task, task.photo, end)
    assert ending is not None, "a shard that went well has a receipt"
    if end == End.TOO_SLOW:
        return _after_slow(case, ending)
    return _after_death(case, ending.suspects)


def _after_probe(task: Task, photo: PlannedPhoto, end: End | None) -> list[Task]:
    case = task.case
    if end == End.DIED and not task.is_second_try:
        return [Task(case, photo, is_second_try=True)]
    if end == End.DIED:
        _blame(case, photo.key, POISON_REASON)
    elif end == End.TOO_SLOW:
        _blame(case, photo.key, TOO_SLOW_REASON.format(case.photo_timeout_s))
    case.to_probe -= 1
    return [] if case.to_probe else _search(case)


def _after_slow(case: Case, ending: Ending) -> list[Task]:
    """A photo that shared its worker may only have waited for others: it is tried alone."""
    if ending.is_certain:
        for key in ending.suspects:
            _blame(case, key, TOO_SLOW_REASON.format(case.photo_timeout_s))
        return [Task(case)]
    case.false_alarms += 1  # or it was none: then it is found
    case.to_search.append([photo for photo in case.plan.photos if photo.key in ending.suspects])
    return _search(case)


def _after_death(case: Case, suspects: frozenset[str]) -> list[Task]:
    case.deaths += 1
    log.warning("shard %s: its worker died (%d times)", case.plan.shard, case.deaths)
    if case.deaths >= DEATHS_BEFORE_FAILURE:
        raise RunFailed(f"shard {case.plan.shard} lost {case.deaths} workers, and no single photo of it is to blame")
    if case.deaths % DEATHS_BEFORE_SEARCH:
        return [Task(case)]
    photos = [photo for photo in case.plan.photos if photo.key not in case.poisonous]
    first = [photo for photo in photos if photo.key in suspects]
    rest = [photo for photo in photos if photo.key not in suspects]
    case.to_search.extend(part for part in (first, rest) if part)
    return _search(case)


def _search(case: Case) -> list[Task]:
    """The next part of a search; the shard again, where a photo was found or all was searched."""
    if not case.to_search:
        return [Task(case)]
    photos = case.to_search.popleft()
    case.to_probe = len(photos)
    return [Task(case, photo) for photo in photos]


def _blame(case: Case, key: str, reason: str) -> None:
    log.error("photo %s: %s", key, reason)
    case.poisonous[key] = reason
    case.deaths = 0
    case.to_search.clear()
