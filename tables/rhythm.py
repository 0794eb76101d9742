"""How a user's orders follow each other, and how likely it is that no more come.

The logarithms of a user's own gaps are normal around a mean and spread of his own, which the
population's parameters surround with a Normal-Inverse-Gamma prior, and after any order he may
be gone for good (a Beta prior): the time to the next order is a Student t in logarithms, mixed
with never. Few orders lean on the population, many on themselves; older gaps fade.

Gaps are between *occasions*: an order less than a day after the first of an occasion belongs
to it. An order older than the last occasion began is of none, so that no gap is negative: a
rhythm is made of orders in the order in which they arrive.

Units: instants and delays in ms, what the model is asked in days. No I/O, no clock.
Sources: Wallace 1959 for the tail of Student's t (error under 0.002 from 2 degrees of freedom
on); dropout after any order, the first too, as in MBG/NBD (Batislam et al. 2007).
"""

from dataclasses import dataclass
from math import erfc, inf, log, log1p, sqrt
from typing import Final

from librt.strings import BytesWriter
from mypy_extensions import mypyc_attr

from tables.calendar import DAY_MS, NEVER
from tables.packing import Reader, put, put_float, put_optional_instant

FADING: Final = 0.9
"""What a gap weighs once another has come."""

QUIET_MS: Final = DAY_MS
"""Nobody is spoken of sooner after an order, and orders closer than that are one occasion."""

FURTHEST_MS: Final = 3650 * DAY_MS
"""A delay that would be longer is none."""


@dataclass(frozen=True)
class Parameters:
    """What a population is like, for gaps in days.

    ``m0``, ``kappa0``, ``a0`` and ``b0`` are the Normal-Inverse-Gamma prior of the logarithms
    of a user's gaps, ``a`` and ``b`` the Beta prior of his being gone after an order.
    """

    m0: float
    kappa0: float
    a0: float
    b0: float
    a: float
    b: float


GENERIC: Final = Parameters(m0=log(14), kappa0=0.7, a0=2.5, b0=1.5, a=0.3, b=1.2)
"""For those who have no history to fit to: gaps around two weeks, a fifth gone after one order."""


@mypyc_attr(acyclic=True)
@dataclass
class Rhythm:
    """A user's orders so far: ``x`` gaps, of which ``n`` still count, and their logarithms' mean
    and sum of squared distances from it. ``last_ms`` is when the last occasion began.
    """

    last_ms: int | None = None
    x: int = 0
    n: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    def write(self, to: BytesWriter) -> None:
        """Append the rhythm as bytes."""
        put_optional_instant(to, self.last_ms)
        put(to, self.x)
        if self.x:
            put_float(to, self.n)
            put_float(to, self.mean)
            put_float(to, self.m2)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        self.last_ms = row.optional_instant()
        self.x = row.number()
        if self.x:
            self.n = row.float()
            self.mean = row.float()
            self.m2 = row.float()
        else:
            self.n = self.mean = self.m2 = 0.0

    def hear(self, ts_ms: int) -> bool:
        """An order at ``ts_ms`` arrived; whether it begins an occasion.

        >>> rhythm = Rhythm()
        >>> [rhythm.hear(hour * DAY_MS // 24) for hour in (0, 168, 180, 72)], rhythm.x
        ([True, True, False, False], 1)
        """
        last_ms = self.last_ms
        if last_ms is None:
            self.last_ms = ts_ms
            return True
        gap_ms = ts_ms - last_ms
        if gap_ms < QUIET_MS:
            return False
        faded = FADING * self.n
        n = faded + 1
        distance = log(gap_ms / DAY_MS) - self.mean
        self.mean += distance / n
        # Never a difference of squares: for a regular user that would cancel to less than 0.
        self.m2 = FADING * self.m2 + distance * distance * faded / n
        self.n = n
        self.x += 1
        self.last_ms = ts_ms
        return True


class Outlook:
    """What the model says of one user, given his rhythm: how long the next gap will be.

    ``mu``, ``sigma`` and ``nu`` are the Student t of its logarithm, ``gone`` the probability
    that there is none.

    >>> outlook = Outlook(Rhythm(), GENERIC)
    >>> outlook.silence(0), round(outlook.silence(30), 3)
    (1.0, 0.422)
    """

    def __init__(self, rhythm: Rhythm, parameters: Parameters) -> None:
        n, mean = rhythm.n, rhythm.mean
        kappa0, m0 = parameters.kappa0, parameters.m0
        kappa = kappa0 + n
        alpha = parameters.a0 + n / 2
        off = mean - m0
        beta = parameters.b0 + rhythm.m2 / 2 + kappa0 * n * off * off / (2 * kappa)
        self.mu = (kappa0 * m0 + n * mean) / kappa
        self.sigma = sqrt(beta * (kappa + 1) / (alpha * kappa))
        self.nu = nu = 2 * alpha
        self.gone = parameters.a / (parameters.a + parameters.b + rhythm.x)
        self._back = 0.5 * (1 - self.gone)
        self._curve = 1 / (self.sigma * self.sigma * nu)
        self._factor = (8 * nu + 1) / (8 * nu + 3) * sqrt(nu / 2)

    def silence(self, days: float) -> float:
        """The probability that the gap is longer than ``days``."""
        if days <= 0:
            return 1.0
        off = log(days) - self.mu
        far = self._factor * sqrt(log1p(off * off * self._curve))
        return self.gone + self._back * erfc(far if off > 0 else -far)

    def still(self, days: float, more: float) -> float:
        """The probability of ``more`` days without an order after ``days`` without one."""
        so_far = self.silence(days)
        # That far out the tail of a curve without dropout underflows.
        return 1.0 if so_far < 1e-300 else self.silence(days + more) / so_far


class Model:
    """When to say that a user will order nothing for another ``horizon_ms``.

    At the first instant at which that has the ``probability``: not sooner than ``QUIET_MS``
    after the last occasion began. It falls at first where an order is about due, and rises
    from then on, so there is one such instant, found to the millisecond.
    """

    def __init__(self, parameters: Parameters, *, horizon_ms: int, probability: float) -> None:
        self.parameters = parameters
        self._horizon = horizon_ms / DAY_MS
        self._probability = probability
        self._first_delay_ms = self._find(Outlook(Rhythm(), parameters))

    def still(self, rhythm: Rhythm, elapsed_ms: int) -> float:
        """The probability of nothing for the horizon, ``elapsed_ms`` after the last occasion."""
        return Outlook(rhythm, self.parameters).still(elapsed_ms / DAY_MS, self._horizon)

    def delay_ms(self, rhythm: Rhythm) -> int:
        """How long after the last occasion to say it; ``NEVER`` if not at all."""
        if not rhythm.x:
            return self._first_delay_ms  # the same for everybody
        return self._find(Outlook(rhythm, self.parameters))

    def _find(self, outlook: Outlook) -> int:
        still, horizon, probability = outlook.still, self._horizon, self._probability
        under_ms, over_ms = QUIET_MS, QUIET_MS
        short, excess = -inf, still(QUIET_MS / DAY_MS, horizon) - probability
        while excess < 0:
            if over_ms == FURTHEST_MS:
                return NEVER
            under_ms, short = over_ms, excess
            over_ms = min(2 * over_ms, FURTHEST_MS)
            excess = still(over_ms / DAY_MS, horizon) - probability
        # Where the line through both ends crosses; an end that stays counts for half (Illinois).
        moved = 0
        while (width := over_ms - under_ms) > 1:
            step = round(width * short / (short - excess))
            middle_ms = under_ms + min(max(step, 1), width - 1)
            found = still(middle_ms / DAY_MS, horizon) - probability
            if found < 0:
                under_ms, short = middle_ms, found
                if moved < 0:
                    excess /= 2
                moved = -1
            else:
                over_ms, excess = middle_ms, found
                if moved > 0:
                    short /= 2
                moved = 1
        return over_ms
