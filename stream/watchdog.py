"""Does this worker still get anywhere? The event loop's lag, and progress per partition.

Promise: a worker is called stuck for one cause only: a partition that it owns had records waiting
all through the limit and applied none, with no recovery under way. A broker that is away (lag not
known), a recovery of any length, an idle topic, or a process that was itself asleep never count.
Clocks are passed in; nothing here is killed or restarted: ``/healthz`` and the log say it.

Boundary: reads a `WorkerView`; the loop's lag goes to the metrics, the verdict to the probe.
"""

import logging
import time
from collections.abc import Callable

from mode import Service

from stream.metrics import WorkerView

log = logging.getLogger(__name__)

STUCK_AFTER_S = 600.0
INTERVAL_S = 0.5


class LoopLag:
    """How late the event loop runs what is due.

    ``expect`` says when the next call of ``arrived`` is due; what it comes later than that is lag.
    Units: seconds, ``clock`` included (monotonic).

    >>> now = 100.0
    >>> lag = LoopLag(clock=lambda: now)
    >>> lag.expect(0.5)
    >>> now = 102.5
    >>> lag.arrived()
    >>> lag.take(), lag.take()
    (2.0, 0.0)
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: float | None = None
        self._largest_s = 0.0

    def expect(self, after_s: float) -> None:
        """``arrived`` is due in ``after_s`` seconds."""
        self._due = self._clock() + after_s

    def arrived(self) -> None:
        """What was expected runs now."""
        self._largest_s = max(self._largest_s, self._overdue())
        self._due = None

    def take(self) -> float:
        """The largest lag since the last call, one that has not ended included."""
        largest_s, self._largest_s = max(self._largest_s, self._overdue()), 0.0
        return largest_s

    def _overdue(self) -> float:
        return 0.0 if self._due is None else max(0.0, self._clock() - self._due)


class Progress:
    """Which partitions had records waiting for ``limit_s`` and applied none.

    Only time that was watched counts: a process stopped for an hour and woken finds the hour
    between two looks, and a look adds no more than ``longest_look_s``.
    """

    def __init__(
        self,
        *,
        limit_s: float = STUCK_AFTER_S,
        longest_look_s: float = 4 * INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit_s = limit_s
        self._longest_look_s = longest_look_s
        self._clock = clock
        self._looked = clock()
        # Per partition and domain with records waiting: position, and seconds at it.
        self._waiting: dict[tuple[str, int], tuple[int, float]] = {}

    def look(self, worker: WorkerView) -> None:
        """Compares every partition that is owned now with the last look."""
        now = self._clock()
        elapsed_s = min(now - self._looked, self._longest_look_s)
        self._looked = now
        before, self._waiting = self._waiting, {}
        if worker.recovering:
            return
        for partition in worker.partitions:
            for domain, view in partition.domains.items():
                if not view.lag:
                    continue
                key = domain, partition.number
                offset = view.applied_offset
                was_at, waited_s = before.get(key, (None, 0.0))
                self._waiting[key] = offset, (waited_s + elapsed_s if was_at == offset else 0.0)

    def stuck(self) -> list[str]:
        """Names of the partitions that get nowhere, as ``purchases[3]``; none is the good case."""
        return [
            f"{domain}[{number}]"
            for (domain, number), (_, waited_s) in self._waiting.items()
            if waited_s >= self._limit_s
        ]


class Watchdog(Service):
    """Looks at a worker every ``interval_s``, in the event loop whose lag it measures."""

    def __init__(
        self,
        worker: WorkerView,
        *,
        limit_s: float = STUCK_AFTER_S,
        interval_s: float = INTERVAL_S,
    ) -> None:
        super().__init__()
        self._worker = worker
        self._limit_s = limit_s
        self._interval_s = interval_s
        self._lag = LoopLag()
        self._progress = Progress(limit_s=limit_s)
        self._reported: list[str] = []

    def loop_lag(self) -> float:
        """Seconds: the largest since the last call."""
        return self._lag.take()

    def alive(self) -> tuple[bool, str]:
        """Whether the worker gets anywhere, and why not."""
        stuck = self._progress.stuck()
        if not stuck:
            return True, "alive"
        return False, f"records wait, none applied for {self._limit_s:g} s: {', '.join(stuck)}"

    @Service.task
    async def _watch(self) -> None:
        while not self.should_stop:
            self._lag.expect(self._interval_s)
            await self.sleep(self._interval_s)
            self._lag.arrived()
            self._progress.look(self._worker)
            self._report()

    def _report(self) -> None:
        """Logs a change for the worse once."""
        stuck = self._progress.stuck()
        if set(stuck) - set(self._reported):
            log.error("%s", self.alive()[1])
        self._reported = stuck
