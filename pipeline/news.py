"""What passes between the first worker of a training on a cluster and the command: steps one way, the end the other."""

import asyncio
from collections.abc import Mapping

Step = Mapping[str, float]  # the values of a `StepMetrics`, as which they would have an actor load torch


class News:
    """An actor. Ray's own queue goes one way alone."""

    def __init__(self) -> None:
        self._steps: asyncio.Queue[Step | None] = asyncio.Queue()
        self._is_to_end = False

    async def tell(self, step: Step | None) -> bool:
        """Tell of a step, and with None that none comes any more; returns whether the training is to end."""
        await self._steps.put(step)
        return self._is_to_end

    async def next(self, *, is_to_end: bool) -> Step | None:
        """The next step, or None; says meanwhile whether the training is to end."""
        self._is_to_end = is_to_end
        return await self._steps.get()
