"""Churn warnings of one user, in both modes, from all orders ever applied.

A *silence* begins with an order at L. It leads to one warning, raised at w, and to the user's
being churned; the warning is scored when it matures.

- mode silence: w = L + after - lead; churned and matured at L + after.
- mode predicted: w = L + the delay of `delay_days`; T = w + lead; churned and matured at
  T + after. An order less than a day after L is of the same occasion and begins nothing.

An order that arrives late and lies before L moves nothing, in either mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.reference.times import DAY_MS

QUIET_DAYS = 1.0
DISCOUNT = 0.9
FURTHEST_DAYS = 3650.0
GENERIC = {"m0": math.log(14), "kappa0": 0.7, "a0": 2.5, "b0": 1.5, "a": 0.3, "b": 1.2}


@dataclass
class Warning:  # the contract's word
    """A raised warning, kept for ever. Instants in epoch ms."""

    last: int  # L
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
    rhythm = Rhythm.of(orders)
    forecast = Forecast(rhythm, parameters(churn), (churn.lead_ms + churn.after_ms) / DAY_MS)
    delay = delay_days(forecast, churn.probability)
    if delay is None:
        return None
    raised = rhythm.last + round(delay * DAY_MS)
    return Warning(
        last=rhythm.last,
        raised=raised,
        churn=raised + churn.lead_ms,
        matures=raised + churn.lead_ms + churn.after_ms,
        probability=forecast.silent_on(delay),
    )


def parameters(churn: Any) -> dict[str, float]:
    """Those of the definitions, or the generic ones."""
    return dict(churn.parameters or GENERIC)


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


def delay_days(forecast: Forecast, probability: float) -> float | None:
    """How long after an order to warn; None: never."""
    if forecast.silent_on(QUIET_DAYS) >= probability:
        return QUIET_DAYS
    low, high = QUIET_DAYS, max(2 * QUIET_DAYS, 1.0)
    while forecast.silent_on(high) < probability:
        low, high = high, 2 * high
        if low > FURTHEST_DAYS:
            return None
    while high - low > 1e-3:
        middle = (low + high) / 2
        if forecast.silent_on(middle) >= probability:
            high = middle
        else:
            low = middle
    return high
