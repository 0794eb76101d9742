"""Churn warnings of one user, in both modes, from all orders ever applied.

A *silence* begins with an order at L. It leads to one warning, raised at w, and to the user's
being churned; the warning is scored when it matures.

- mode silence: w = L + after - lead; churned and matured at L + after.
- mode predicted: w = L + the delay of `delay_ms`; T = w + lead; churned and matured at
  T + after. An order less than a day after L is of the same occasion and begins nothing.

An order that arrives late and lies before L moves nothing, in either mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from tests.reference.times import DAY_MS

QUIET_MS = DAY_MS
DISCOUNT = 0.9
FURTHEST_MS = 3650 * DAY_MS
GENERIC = {"m0": math.log(14), "kappa0": 0.7, "a0": 2.5, "b0": 1.5, "a": 0.3, "b": 1.2}


@dataclass
class Warning:  # the contract's word
    """A raised warning, kept for ever. Instants in epoch ms."""

    last: int  # L, as the definitions in force see it
    raised: int
    churn: int
    matures: int
    probability: float | None
    scored: bool = False
    returned: int | None = None
    returned_from: str | None = None


@dataclass
class Course:
    """How far things have come with a user."""

    state: str = "none"
    warnings: list[Warning] = field(default_factory=list)
    churned_for: set[int] = field(default_factory=set)

    def warning_of(self, last: int) -> Warning | None:
        """That of the silence since ``last``."""
        return next((warning for warning in self.warnings if warning.last == last), None)


def silence(churn: Any, orders: Sequence[int]) -> Warning | None:
    """The warning that the present silence leads to; ``orders`` as they arrived.

    None where it leads to none.
    """
    if churn is None or not orders:
        return None
    if churn.mode == "silence":
        last = max(orders)
        return Warning(
            last=last,
            raised=last + churn.after_ms - churn.lead_ms,
            churn=last + churn.after_ms,
            matures=last + churn.after_ms,
            probability=None,
        )
    horizon_days = (churn.lead_ms + churn.after_ms) / DAY_MS
    given = tuple(sorted((churn.parameters or GENERIC).items()))
    foreseen = _foreseen(tuple(orders), given, horizon_days, churn.probability)
    if foreseen is None:
        return None
    last, raised, probability = foreseen
    return Warning(
        last=last,
        raised=raised,
        churn=raised + churn.lead_ms,
        matures=raised + churn.lead_ms + churn.after_ms,
        probability=probability,
    )


@lru_cache(maxsize=10_000)
def _foreseen(
    orders: tuple[int, ...],
    parameters: tuple[tuple[str, float], ...],
    horizon_days: float,
    probability: float,
) -> tuple[int, int, float] | None:
    """L, w, and how probable silence is then."""
    rhythm = Rhythm.of(orders)
    forecast = Forecast(rhythm, dict(parameters), horizon_days)
    delay = delay_ms(forecast, probability)
    if delay is None:
        return None
    return rhythm.last, rhythm.last + delay, round(forecast.silent_on(delay / DAY_MS), 6)


@dataclass
class Rhythm:
    """The gaps between a user's orders: discounted count, mean and scatter of their logarithms."""

    last: int
    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0
    x: int = 0

    @classmethod
    def of(cls, orders: Sequence[int]) -> "Rhythm":
        """All orders, as they arrived."""
        rhythm = cls(orders[0])
        for order in orders[1:]:
            gap_days = (order - rhythm.last) / DAY_MS
            if gap_days < 1:
                continue  # the same occasion, or late
            y = math.log(gap_days)
            n0 = DISCOUNT * rhythm.n
            rhythm.n = n0 + 1
            difference = y - rhythm.mean
            rhythm.mean += difference / rhythm.n
            rhythm.m2 = DISCOUNT * rhythm.m2 + difference**2 * n0 / rhythm.n
            rhythm.x += 1
            rhythm.last = order
        return rhythm


class Forecast:
    """How likely a user is to stay silent. Times in days since the last order."""

    def __init__(self, rhythm: Rhythm, p: dict[str, float], horizon_days: float) -> None:
        n, mean = rhythm.n, rhythm.mean
        kappa = p["kappa0"] + n
        self.mu = (p["kappa0"] * p["m0"] + n * mean) / kappa
        alpha = p["a0"] + n / 2
        beta = p["b0"] + rhythm.m2 / 2 + p["kappa0"] * n * (mean - p["m0"]) ** 2 / (2 * kappa)
        self.sigma = math.sqrt(beta * (kappa + 1) / (alpha * kappa))
        self.nu = 2 * alpha
        self.gone = p["a"] / (p["a"] + p["b"] + rhythm.x)
        self.horizon_days = horizon_days

    def longer_than(self, days: float) -> float:
        """P(gap > days)."""
        z = (math.log(days) - self.mu) / self.sigma
        nu = self.nu
        w = (8 * nu + 1) / (8 * nu + 3) * math.sqrt(nu * math.log1p(z * z / nu))
        survives = 0.5 * math.erfc(math.copysign(w, z) / math.sqrt(2))
        return self.gone + (1 - self.gone) * survives

    def silent_on(self, days: float) -> float:
        """P(silent for the whole horizon more | silent for ``days``)."""
        so_far = self.longer_than(days)
        return 1.0 if so_far < 1e-300 else self.longer_than(days + self.horizon_days) / so_far


def delay_ms(forecast: Forecast, probability: float) -> int | None:
    """How long after an order to warn, to the first millisecond; None: never."""

    def is_enough(delay: int) -> bool:
        return forecast.silent_on(delay / DAY_MS) >= probability

    if is_enough(QUIET_MS):
        return QUIET_MS
    low, high = QUIET_MS, 2 * QUIET_MS
    while not is_enough(high):
        if high == FURTHEST_MS:
            return None
        low, high = high, min(2 * high, FURTHEST_MS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
