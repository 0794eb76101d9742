"""The rhythm of a user's orders: vectors, a population of real customers, and odd ones."""

import csv
import gzip
from collections.abc import Iterator
from datetime import date
from functools import cache
from math import ceil, exp, inf

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stream import data
from tables import fitting
from tables.calendar import DAY_MS, NEVER
from tables.rhythm import FURTHEST_MS, GENERIC, QUIET_MS, Model, Outlook, Parameters, Rhythm

HORIZON = 33  # days: three ahead, and thirty of silence

# Of the vectors, and of CDNOW's first half.
SOME = Parameters(m0=3, kappa0=0.6, a0=2.8, b0=1.4, a=0.3, b=1.2)
CDNOW = Parameters(m0=4.28759, kappa0=1.46883, a0=120.92, b0=202.665, a=0.471266, b=0.535587)


def after(*gaps: float) -> Rhythm:
    """The rhythm of somebody whose orders came so many days after each other."""
    rhythm, ts_ms = Rhythm(), 0
    rhythm.hear(ts_ms)
    for gap in gaps:
        ts_ms += round(gap * DAY_MS)
        rhythm.hear(ts_ms)
    return rhythm


def model(parameters: Parameters, probability: float, horizon: float = HORIZON) -> Model:
    return Model(parameters, horizon_ms=round(horizon * DAY_MS), probability=probability)


# -- vectors, computed elsewhere with 40 digits


@pytest.mark.parametrize(
    ("gaps", "n", "mean", "m2", "mu", "sigma", "nu", "gone"),
    [
        ((), 0, 0, 0, 3, 1.1547005383792515, 5.6, 0.2),
        ((7,), 1, 1.9459101490553132, 0, 2.3411938431595707, 0.8899335914595773, 6.6, 0.12),
        (
            (7, 7, 7, 7),
            *(3.439, 1.9459101490553132, 0),
            *(2.1024969058185743, 0.68176892434274, 9.039, 0.05454545454545454),
        ),
        (
            (3, 4, 2, 5, 3, 4, 3),
            *(5.217031, 1.20119045515098, 0.3665507793427248),
            *(1.3867293884847394, 0.7291775199078098, 10.817031, 0.03529411764705882),
        ),
        (
            (30, 45, 28, 60),
            *(3.439, 3.68019718793994, 0.35020778400151925),
            *(3.57915279260348, 0.6836835478186286, 9.039, 0.05454545454545454),
        ),
        (
            (1, 1, 1, 90),
            *(3.439, 1.3084645741001062, 14.36044552537754),
            *(1.5597449047611451, 1.6032101294179104, 9.039, 0.05454545454545454),
        ),
        (
            (2,) * 40,
            *(9.852191170585654, 0.6931471805599453, 0),
            *(0.8255702934818724, 0.6418310223694819, 15.452191170585655, 0.007228915662650603),
        ),
    ],
)
def test_the_state_and_the_curve_of_the_vectors(gaps, n, mean, m2, mu, sigma, nu, gone):
    """To the last digits that floats have."""
    rhythm = after(*gaps)
    outlook = Outlook(rhythm, SOME)
    found = [rhythm.n, rhythm.mean, outlook.mu, outlook.sigma, outlook.nu, outlook.gone]
    assert found == pytest.approx([n, mean, mu, sigma, nu, gone], rel=1e-14)
    assert rhythm.m2 == pytest.approx(m2, rel=1e-13, abs=1e-15)
    assert rhythm.x == len(gaps)


@pytest.mark.parametrize(
    ("gaps", "silence_10", "silence_40", "still_1", "still_20", "delay_4", "delay_7"),
    [
        (
            (),
            *(0.7724209692946067, 0.42941682936308057),
            *(0.4743668296694341, 0.6218900070429543, 1.0, 30.72658400439608),
        ),
        (
            (7,),
            *(0.5746795041947874, 0.19750944459089245),
            *(0.22336248580547688, 0.5070664461586089, 13.95546648182292, 33.98697348030705),
        ),
        (
            (7, 7, 7, 7),
            *(0.42120889820420515, 0.07579698778178971),
            *(0.08641480622835467, 0.40940640786171567, 19.635075031655546, 33.540008594758675),
        ),
        (
            (3, 4, 2, 5, 3, 4, 3),
            *(0.14886952436952242, 0.039809602050558106),
            *(0.04376314660186523, 0.6329547226958223, 13.399141680341563, 22.56205370849322),
        ),
        (
            (30, 45, 28, 60),
            *(0.9552739780904461, 0.4686253947594107),
            *(0.5557371024597478, 0.40959381542159995, 1.0, 95.94324897098934),
        ),
        (
            (1, 1, 1, 90),
            *(0.3636462494813442, 0.15693900158428217),
            *(0.20809110072925535, 0.554484203086061, 9.24251444246777, 37.20356603345073),
        ),
        (
            (2,) * 40,
            *(0.024953922538473183, 0.00744336039116443),
            *(0.008504975857319724, 0.7947189650763579, 11.603602564664268, 17.15109878372708),
        ),
    ],
)
def test_the_predictions_of_the_vectors(
    gaps, silence_10, silence_40, still_1, still_20, delay_4, delay_7
):
    """Probabilities to the last digits, delays to the millisecond that follows."""
    rhythm = after(*gaps)
    outlook = Outlook(rhythm, SOME)
    found = [
        *(outlook.silence(10), outlook.silence(40)),
        *(outlook.still(1, HORIZON), outlook.still(20, HORIZON)),
    ]
    assert found == pytest.approx([silence_10, silence_40, still_1, still_20], rel=1e-13)
    for probability, delay in ((0.4, delay_4), (0.7, delay_7)):
        assert model(SOME, probability).delay_ms(rhythm) == ceil(delay * DAY_MS - 1e-3)


# -- real customers, by day: timers on whole days, a day's orders before its timers

FIRST_HALF, LAST_DAY = 273, 545  # where the first half ends; the last day there are data of
LONGEST = 90  # a warning more days after an order is not counted, so that all that are have an end


@cache
def customers() -> tuple[list[int], ...]:
    """Of each customer, the days with an order, ascending."""
    begin, found = date(1997, 1, 1), dict[str, set[int]]()
    with gzip.open(data.CDNOW, "rt", encoding="ascii") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["user"], set()).add((date.fromisoformat(row["date"]) - begin).days)
    return tuple(sorted(days) for days in found.values())


def scored(silent: int) -> Iterator[tuple[Rhythm, float]]:
    """Every order of the second half that has an end: the rhythm after it, the gap in days.

    Its next order is to stay away for ``silent`` days more than three.
    """
    for days in customers():
        rhythm = Rhythm()
        for day, following in zip(days, [*days[1:], inf], strict=True):
            rhythm.hear(day * DAY_MS)
            if FIRST_HALF <= day <= LAST_DAY - silent - 3 - LONGEST:
                yield rhythm, following - day


@pytest.mark.parametrize(
    ("silent", "probability", "warnings", "right"),
    [
        (30, 0.3, 10490, 6587),
        (30, 0.4, 10054, 6518),
        (30, 0.5, 9403, 6317),
        (90, 0.3, 5857, 2766),
        (90, 0.4, 5171, 2667),
        (90, 0.5, 4417, 2470),
    ],
)
def test_the_second_half_of_cdnow_by_the_parameters_of_the_first(
    silent, probability, warnings, right
):
    """Every warning, and every one that was right."""
    predicting = model(CDNOW, probability, silent + 3)
    raised = []
    for rhythm, gap in scored(silent):
        delay_ms = predicting.delay_ms(rhythm)
        delay = inf if delay_ms == NEVER else ceil(delay_ms / DAY_MS)
        if delay <= LONGEST and gap > delay:
            raised.append(gap > delay + silent + 3)
    assert (len(raised), sum(raised)) == (warnings, right)


def average_precision(parameters: Parameters, silent: int) -> float:
    """The area under precision over recall, as the probability asked for goes down."""
    curves, gaps = [], []
    for rhythm, gap in scored(silent):
        outlook = Outlook(rhythm, parameters)
        curves.append([outlook.still(day, silent + 3) for day in range(1, LONGEST + 1)])
        gaps.append(gap)
    highest = np.maximum.accumulate(np.array(curves), axis=1)
    gap_days = np.array(gaps)
    lost = int(np.count_nonzero(gap_days > silent + 3))
    recalls, precisions = [0.0], [0.0]
    for asked in np.quantile(highest, np.linspace(1, 0, 200)):
        delays = np.count_nonzero(highest < asked, axis=1) + 1
        raised = (delays <= LONGEST) & (gap_days > delays)
        right = int(np.count_nonzero(raised & (gap_days > delays + silent + 3)))
        recalls.append(right / lost)
        precisions.append(right / max(1, int(np.count_nonzero(raised))))
    # The best that can be had at a recall or a higher one.
    envelope = np.maximum.accumulate(precisions[::-1])[::-1]
    return float(np.trapezoid(envelope, recalls))


@pytest.mark.parametrize(
    ("silent", "lost", "orders", "area"), [(30, 6683, 11259, 0.820), (90, 2844, 7307, 0.670)]
)
def test_the_average_precision_on_cdnow(silent, lost, orders, area):
    """Near what was published, which does not say at which probabilities it was looked at."""
    gaps = [gap for _, gap in scored(silent)]
    assert (sum(gap > silent + 3 for gap in gaps), len(gaps)) == (lost, orders)
    assert average_precision(CDNOW, silent) == pytest.approx(area, abs=0.006)


@cache
def first_half() -> fitting.Rows:
    histories = ([day * DAY_MS for day in days] for days in customers())
    return fitting.rows(histories, FIRST_HALF * DAY_MS)


def test_the_likelihood_of_the_first_half_of_cdnow():
    """Under the parameters that fit it."""
    assert len(first_half()) == 47_907
    assert fitting.log_likelihood(first_half(), CDNOW) == pytest.approx(-142_961.0, abs=0.05)


def test_a_fit_of_our_own_is_as_good():
    """As likely, and on the second half as precise."""
    steps = []
    found = fitting.fit(first_half(), lambda: steps.append(1))
    assert steps
    assert found.log_likelihood == pytest.approx(-142_961.0, abs=1)
    assert fitting.log_likelihood(first_half(), found.parameters) == found.log_likelihood
    assert average_precision(found.parameters, 30) >= 0.81


def test_rows_of_a_fit_end_where_the_history_does():
    """A gap is closed by an order up to the end, the end's own instant too; else it is open."""
    found = fitting.rows([[0, DAY_MS // 2, 3 * DAY_MS, 5 * DAY_MS], [4 * DAY_MS]], 4 * DAY_MS)
    assert found.days.tolist() == [3, 1]  # nothing is known of an order at the end
    assert found.closed.tolist() == [True, False]
    assert found.x.tolist() == [0, 1]
    with pytest.raises(fitting.TooLittleError):
        fitting.fit(fitting.rows([[0], [5]], DAY_MS))


# -- odd customers


def test_orders_of_one_occasion_and_old_ones_change_no_rhythm():
    """Less than a day after the occasion began, or before it; a day is a gap."""
    rhythm = Rhythm()
    assert rhythm.hear(DAY_MS)
    assert not rhythm.hear(2 * DAY_MS - 1)
    assert not rhythm.hear(DAY_MS)
    assert not rhythm.hear(0)
    assert rhythm == Rhythm(DAY_MS)
    assert rhythm.hear(2 * DAY_MS)
    assert rhythm == Rhythm(2 * DAY_MS, 1, 1.0, 0.0, 0.0)


GAPS = st.lists(
    st.one_of(st.integers(1, 400), st.floats(1, 3_000), st.sampled_from([1, 7])), max_size=30
)
POPULATIONS = st.builds(
    Parameters,
    m0=st.floats(-2, 7),
    kappa0=st.floats(0.01, 50),
    a0=st.floats(0.5, 400),
    b0=st.floats(0.01, 400),
    a=st.one_of(st.just(0.0), st.floats(1e-4, 20)),
    b=st.floats(1e-4, 400),
)


@settings(deadline=None)
@given(GAPS)
def test_the_rhythm_is_what_a_sum_over_all_gaps_says(gaps):
    """Weights that fade by a tenth with every gap, the newest counting in full."""
    rhythm = after(*gaps)
    logs = np.log([round(gap * DAY_MS) / DAY_MS for gap in gaps])
    weights = 0.9 ** np.arange(len(gaps))[::-1]
    if gaps:
        mean = np.average(logs, weights=weights)
        assert rhythm.n == pytest.approx(weights.sum())
        assert rhythm.mean == pytest.approx(mean, abs=1e-12)
        assert rhythm.m2 == pytest.approx((weights * (logs - mean) ** 2).sum(), abs=1e-10)
        assert rhythm.m2 >= 0


@settings(deadline=None)
@given(GAPS, POPULATIONS, st.floats(0.01, 0.99), st.floats(0.1, 400))
@example([1.0] * 30, Parameters(0, 50, 400, 0.01, 0, 1), 0.5, 3)  # no tail and no dropout at all
@example([2_000.0] * 3, SOME, 0.9, 33)  # beyond what is looked at
def test_the_delay_is_the_first_millisecond_that_is_probable_enough(
    gaps, parameters, probability, horizon
):
    """By halving alone, as slow as it is: exact, at least a day, ten years at most."""
    rhythm = after(*gaps)
    outlook = Outlook(rhythm, parameters)
    horizon_days = round(horizon * DAY_MS) / DAY_MS

    def enough(delay_ms: int) -> bool:
        return bool(outlook.still(delay_ms / DAY_MS, horizon_days) >= probability)

    found = model(parameters, probability, horizon).delay_ms(rhythm)
    delay_ms = QUIET_MS
    while not enough(delay_ms) and delay_ms < FURTHEST_MS:
        delay_ms = min(2 * delay_ms, FURTHEST_MS)
    if not enough(delay_ms):
        assert found == NEVER
        return
    under_ms = delay_ms // 2
    while delay_ms - under_ms > 1 and delay_ms > QUIET_MS:
        middle_ms = (under_ms + delay_ms) // 2
        under_ms, delay_ms = (under_ms, middle_ms) if enough(middle_ms) else (middle_ms, delay_ms)
    assert found == delay_ms
    # Sooner than asked for the probability is too low, one step before or many.
    for step in (1, 2, 10):
        earlier_ms = QUIET_MS + (found - QUIET_MS) * (step - 1) // step
        assert found == QUIET_MS or earlier_ms == found or not enough(earlier_ms - 1)


@settings(deadline=None)
@given(GAPS, POPULATIONS)
def test_silence_falls_from_certain_to_gone(gaps, parameters):
    """A probability, at any distance."""
    outlook = Outlook(after(*gaps), parameters)
    falling = [outlook.silence(days) for days in (0, 1e-9, 1e-3, 1, 10, 100, 1e4, 1e9)]
    assert falling[0] == 1
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] >= outlook.gone * (1 - 1e-12)
    assert all(0 <= outlook.still(days, HORIZON) <= 1 + 1e-12 for days in (1, 30, 3_000, 1e9))


def test_regular_customers_do_not_cancel_out():
    """A thousand equal gaps leave no spread, and not less than none."""
    rhythm = after(*[7] * 1_000)
    assert rhythm.m2 == 0
    assert rhythm.n == pytest.approx(10)
    assert model(GENERIC, 0.4).delay_ms(rhythm) > 7 * DAY_MS


def test_where_nobody_leaves_and_the_tail_is_lost_silence_is_certain():
    """Instead of a division by zero."""
    outlook = Outlook(after(*[1] * 60), Parameters(0, 50, 400, 0.01, 0, 1))
    assert outlook.silence(exp(9)) < 1e-300
    assert outlook.still(exp(9), 1) == 1
