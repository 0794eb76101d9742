"""What a domain says of one user, in the order in which it follows from an event or from time."""

from typing import Any

from mypy_extensions import mypyc_attr

Step = tuple[int, int, int]
Heard = tuple[int, int, bool, bool]
Figure = tuple[str, str, int]


@mypyc_attr(acyclic=True)
class Outputs:
    """What there is to emit, in order: JSON-ready records without ``emitted_at``.

    ``steps`` say how changes and warnings follow each other: each is one evaluation that changed
    tags, as the number of changes after it, of warnings before it, and its instant. One without a
    change says that other definitions came into force for the user.
    ``heard`` is what the user's profile was not told of: an event's time, its local day, whether
    the user was active, and whether it was a registration; ``active_day`` stands for it where all
    that is new is that the user was active that day. ``figures`` are amounts to be added to
    what operations count: what, of which kind, how much; ``dwelt`` are tags that the user no longer
    has with the value before, and for how many ms it was so.
    ``erased_ms`` that of an erasure, after which the record has to go, and the user's clock then.
    ``ended`` are warnings that an erasure ended.
    """

    def __init__(self) -> None:
        self.changes: list[dict[str, Any]] = []
        self.warnings: list[dict[str, Any]] = []
        self.steps: list[Step] = []
        self.heard: Heard | None = None
        self.active_day: int | None = None
        self.erased_ms: tuple[int, int] | None = None
        self.ended: list[dict[str, Any]] = []
        self.figures: list[Figure] = []
        self.dwelt: list[tuple[str, int]] = []

    @property
    def is_silent(self) -> bool:
        """Nothing was said that anybody has to be told."""
        told = self.steps or self.warnings or self.erased_ms
        return not told and self.heard is None

    def clear(self) -> None:
        """Ready for the next user; figures stay until they are counted."""
        self.changes.clear()
        self.warnings.clear()
        self.steps.clear()
        self.ended.clear()
        self.dwelt.clear()
        self.heard = self.active_day = self.erased_ms = None
