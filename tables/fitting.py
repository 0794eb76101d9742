"""What a population is like, from its orders: the parameters of ``tables/rhythm.py``.

Maximum likelihood over one row per occasion that began before the end: the rhythm after it,
and the gap that followed, or that the end cut off. Those open gaps must count as what they
are, longer than seen: the closed ones alone are biased short.

Needs numpy and scipy, which nothing else does: the extra ``fit``. No I/O, no clock.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import gammaln, ndtr

from tables.calendar import DAY_MS
from tables.rhythm import Parameters, Rhythm

Floats = NDArray[np.float64]

FLOOR, CEILING = -9.0, 6.0
"""Bounds of the logarithms of all parameters but ``m0``: where users all vary alike, or nobody
ever leaves, some would run away without a difference to anybody."""

MOST_STEPS: Final = 500


class TooLittleError(ValueError):
    """There is nothing to learn from: no user has ordered on two days."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One entry per occasion: its rhythm in four columns, and how long it lasted at least."""

    n: Floats
    mean: Floats
    m2: Floats
    x: Floats
    days: Floats
    closed: NDArray[np.bool_]  # whether it ended with ``days``, or was cut off

    def __len__(self) -> int:
        return len(self.days)


@dataclass(frozen=True, slots=True)
class Fit:
    """The likeliest parameters, and how likely the rows are under them."""

    parameters: Parameters
    log_likelihood: float


def rows(histories: Iterable[Sequence[int]], until_ms: int) -> Rows:
    """The rows of users of whom each is the instants of his orders, ascending.

    Orders after ``until_ms`` are not looked at.
    """
    table = array("d")
    for history in histories:
        rhythm = Rhythm()
        state: tuple[float, ...] | None = None
        for ts_ms in history:
            if ts_ms > until_ms:
                break
            before_ms = rhythm.last_ms
            if rhythm.hear(ts_ms):
                if state is not None and before_ms is not None:
                    table.extend((*state, (ts_ms - before_ms) / DAY_MS, True))
                state = (rhythm.n, rhythm.mean, rhythm.m2, rhythm.x)
        if state is not None and rhythm.last_ms is not None and rhythm.last_ms < until_ms:
            table.extend((*state, (until_ms - rhythm.last_ms) / DAY_MS, False))
    columns = np.array(table).reshape(-1, 6).T
    n, mean, m2, x, days, closed = columns
    return Rows(n=n, mean=mean, m2=m2, x=x, days=days, closed=closed > 0)


def quantile(found: Rows, share: float) -> float:
    """How many days that share of the closed gaps lasts at most."""
    return float(np.quantile(found.days[found.closed], share))


def log_likelihood(found: Rows, parameters: Parameters) -> float:
    """How likely the rows are, in logarithms."""
    return -_loss(_Prepared(found), np.array(astuple(parameters)))


def fit(found: Rows, stepped: Callable[[], object] = lambda: None) -> Fit:
    """The likeliest parameters; ``stepped`` is told of every step towards them.

    Raises:
        TooLittleError: no gap was closed.
    """
    if not found.closed.any():
        raise TooLittleError
    prepared = _Prepared(found)
    begin = np.array([np.log(found.days[found.closed]).mean(), *np.log([0.7, 2.5, 1.5, 0.5, 1.5])])

    def loss(point: Floats) -> float:
        return _loss(prepared, _spread(point))

    best = minimize(
        loss,
        begin,
        method="L-BFGS-B",
        bounds=[(None, None), *[(FLOOR, CEILING)] * 5],
        callback=lambda _: stepped(),
        options={"maxiter": MOST_STEPS},
    )
    return Fit(Parameters(*map(float, _spread(best.x))), -float(best.fun))


def _spread(point: Floats) -> Floats:
    return np.concatenate((point[:1], np.exp(point[1:])))


class _Prepared:
    """What of the rows does not depend on parameters."""

    def __init__(self, found: Rows) -> None:
        self.rows = found
        self.log_days = np.log(found.days)
        self.closed = found.closed
        self.open = ~found.closed


def _loss(prepared: _Prepared, parameters: Floats) -> float:
    m0, kappa0, a0, b0, a, b = parameters
    found = prepared.rows
    kappa = kappa0 + found.n
    alpha = a0 + found.n / 2
    off = found.mean - m0
    beta = b0 + found.m2 / 2 + kappa0 * found.n * off * off / (2 * kappa)
    mu = (kappa0 * m0 + found.n * found.mean) / kappa
    sigma = np.sqrt(beta * (kappa + 1) / (alpha * kappa))
    nu = 2 * alpha
    gone = a / (a + b + found.x)
    z = (prepared.log_days - mu) / sigma
    closed, still = prepared.closed, prepared.open
    density = (
        np.log1p(-gone[closed])
        + _log_density(z[closed], nu[closed])
        - np.log(sigma[closed])
        - prepared.log_days[closed]
    )
    silence = np.log(gone[still] + (1 - gone[still]) * _tail(z[still], nu[still]))
    return -float(density.sum() + silence.sum())


def _log_density(z: Floats, nu: Floats) -> Any:
    """Of Student's t."""
    return (
        gammaln((nu + 1) / 2)
        - gammaln(nu / 2)
        - np.log(nu * np.pi) / 2
        - (nu + 1) / 2 * np.log1p(z * z / nu)
    )


def _tail(z: Floats, nu: Floats) -> Any:
    """Of Student's t, by the approximation that the model itself uses."""
    far = np.sign(z) * (8 * nu + 1) / (8 * nu + 3) * np.sqrt(nu * np.log1p(z * z / nu))
    return ndtr(-far)
