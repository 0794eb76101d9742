"""Churn warnings, by silence and predicted: raised, churned, scored, returned, to the instant."""

import math
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tables.calendar import DAY_MS, NEVER
from tables.events.purchases import Order
from tables.purchases import Purchases
from tables.rhythm import GENERIC, Model
from tables.table import Outputs
from tests.solo import Solo, definitions

# With the last order at 1 April 10:00: raised on the 28th, churned on 1 May, at 10:00.
LAST, RAISED, CHURNED = "2025-04-01 10:00", "2025-04-28 10:00", "2025-05-01 10:00"
THE_RAISING, THE_CHURN = "2025-04-28T10:00:00", "2025-05-01T10:00:00"

STATES = {
    "name": "state",
    "cases": {state: f"churn_state == '{state}'" for state in ("none", "warned", "churned")},
}


def buyer(after: str = "30d", lead: str = "3d", control: float = 0) -> Solo:
    """Somebody who ordered at LAST."""
    churn = {"mode": "silence", "after": after, "lead": lead, "control": control}
    solo = Solo(STATES, churn=churn)
    solo.tell(LAST, amount=12.5)
    return solo


def test_silence_is_warned_of_and_then_churned_and_scored():
    """One deadline at a time, not a millisecond early; tags last at each instant."""
    solo = buyer()
    assert solo.deadline == THE_RAISING
    assert not solo.wait("2025-04-28 09:59:59.999")
    assert solo.wait(RAISED)
    assert solo.says("churn_state") == "warned"
    assert solo.deadline == THE_CHURN
    assert solo.wait("2026-01-01")
    assert solo.says("churn_state") == "churned"
    assert solo.deadline is None
    assert solo.warnings == [
        ("raised", THE_RAISING),
        ("churned", THE_CHURN),
        ("scored", THE_CHURN),
    ]
    assert solo.changes == [
        ("none", "2025-04-01T10:00:00", "event"),
        ("warned", THE_RAISING, "time"),
        ("churned", THE_CHURN, "time"),
    ]


def test_a_record_says_everything_in_every_status():
    """The tags are those from before the instant."""
    solo = buyer()
    solo.wait(CHURNED)
    solo.tell("2025-05-02 10:00", amount=0.5)
    shared: dict[str, Any] = {
        "user_id": "u1",
        "raised_at": "2025-04-28T10:00:00.000+08:00",
        "churn_at": "2025-05-01T10:00:00.000+08:00",
        "matures_at": "2025-05-01T10:00:00.000+08:00",
        "mode": "silence",
        "probability": None,
        "level": "red",
        "control": False,
    }
    silent: dict[str, Any] = {
        "last_order_at": "2025-04-01T10:00:00.000+08:00",
        "first_order_at": "2025-04-01T10:00:00.000+08:00",
        "orders_total": 1,
        "spend_total": 12.5,
    }
    ordering = silent | {
        "last_order_at": "2025-05-02T10:00:00.000+08:00",
        "orders_total": 2,
        "spend_total": 13.0,
    }
    away: dict[str, Any] = {"returned_at": None, "returned_from": None}
    back = {"returned_at": "2025-05-02T10:00:00.000+08:00", "returned_from": "churned"}
    expected = [
        ("raised", "2025-04-28T10:00:00.000+08:00", "none", silent, away, None),
        ("churned", "2025-05-01T10:00:00.000+08:00", "warned", silent, away, None),
        ("scored", "2025-05-01T10:00:00.000+08:00", "warned", silent, away, True),
        ("returned", "2025-05-02T10:00:00.000+08:00", "churned", ordering, back, None),
    ]
    assert len({warning.pop("warning_id") for warning in solo.out.warnings}) == 1
    assert solo.out.warnings == [
        {"status": status, "at": at, "tags": {"state": tag}, "evidence": evidence, "right": right}
        | shared
        | returned
        for status, at, tag, evidence, returned, right in expected
    ]


@pytest.mark.parametrize(
    ("at", "right"),
    [
        ("2025-04-28 10:00", True),  # at the raising: the interval is open
        ("2025-04-28 10:00:00.001", False),
        ("2025-05-01 09:59:59.999", False),
    ],
)
def test_an_order_inside_the_open_interval_proves_the_warning_wrong(at, right):
    """It returns the user at once; right or wrong is said at the maturity."""
    solo = buyer()
    assert solo.tell(at) == "applied"
    assert solo.says("churn_state") == "none"
    solo.wait("2025-05-01 10:00")
    assert [status for status, _ in solo.warnings] == ["raised", "returned", "scored"]
    assert solo.out.warnings[1]["returned_from"] == "warned"
    assert solo.out.warnings[2]["right"] is right


def test_an_order_at_the_very_instant_of_the_churn_comes_after_it():
    """So it returns from churned, and the warning was right."""
    solo = buyer()
    solo.tell(CHURNED)
    assert [status for status, _ in solo.warnings] == ["raised", "churned", "scored", "returned"]
    assert solo.out.warnings[2]["right"] is True
    assert solo.out.warnings[3]["returned_from"] == "churned"


def test_a_late_order_returns_but_does_not_refute_what_it_lies_before():
    """It moves the silence: the next warning counts from it."""
    solo = buyer()
    solo.wait(RAISED)
    assert solo.tell("2025-04-20 10:00", time=RAISED) == "late"
    assert solo.says("churn_state") == "none"
    assert solo.warnings[-1] == ("returned", THE_RAISING)  # at the clock
    solo.wait(CHURNED)
    assert solo.warnings[2:] == [("scored", THE_CHURN)]
    assert solo.out.warnings[2]["right"] is True
    assert solo.deadline == "2025-05-17T10:00:00"


def test_a_late_order_inside_the_interval_refutes_until_the_maturity():
    """Though it arrives after later ones."""
    solo = buyer()
    solo.tell("2025-04-28 10:00")
    solo.tell("2025-04-30 10:00", "updated")
    solo.tell("2025-04-29 10:00")
    solo.wait(CHURNED)
    assert solo.out.warnings[-1]["status"] == "scored"
    assert solo.out.warnings[-1]["right"] is False


def test_a_late_order_before_the_last_one_starts_no_new_silence():
    """The user is welcomed, and still churned when the silence has lasted."""
    solo = buyer()
    solo.wait(RAISED)
    solo.tell("2025-03-31 10:00", time=RAISED)
    assert solo.says("churn_state") == "none"
    assert solo.deadline == THE_CHURN
    solo.wait(CHURNED)
    assert solo.says("churn_state") == "churned"
    solo.tell("2025-05-03 10:00")
    assert [status for status, _ in solo.warnings] == ["raised", "returned", "churned", "scored"]
    assert solo.says("churn_state") == "none"


def test_deadlines_that_a_late_order_puts_into_the_past_fire_with_their_own_instants():
    """Tags follow as of the clock, once for each."""
    solo = buyer(after="2d", lead="1d")
    solo.wait("2025-04-03 10:00")
    solo.tell("2025-04-10 00:00", "updated")
    said = len(solo.warnings)
    solo.tell("2025-04-05 10:00", time="2025-04-10")
    solo.tell("2025-04-10 00:00", "updated", time="2025-04-10")
    assert solo.warnings[said:] == [
        ("returned", "2025-04-10T00:00:00"),
        ("raised", "2025-04-06T10:00:00"),
        ("churned", "2025-04-07T10:00:00"),
        ("scored", "2025-04-07T10:00:00"),
    ]
    assert solo.changes[-3:] == [
        ("none", "2025-04-10T00:00:00", "event"),
        ("warned", "2025-04-10T00:00:00", "time"),
        ("churned", "2025-04-10T00:00:00", "time"),
    ]


def test_warnings_may_overlap():
    """A refuted one is scored while the next is open; each under its own id."""
    solo = buyer(after="5d", lead="4d")  # raised a day after each order
    solo.tell("2025-04-03 10:00")
    solo.wait("2025-04-20")
    assert solo.warnings == [
        ("raised", "2025-04-02T10:00:00"),
        ("returned", "2025-04-03T10:00:00"),
        ("raised", "2025-04-04T10:00:00"),
        ("scored", "2025-04-06T10:00:00"),
        ("churned", "2025-04-08T10:00:00"),
        ("scored", "2025-04-08T10:00:00"),
    ]
    first, second = solo.out.warnings[0], solo.out.warnings[2]
    assert first["warning_id"] != second["warning_id"]
    assert [w["warning_id"] for w in solo.out.warnings[3:]] == [
        first["warning_id"],
        *[second["warning_id"]] * 2,
    ]
    assert len(solo.user.churn.warnings) == 1  # the first is done with


def test_the_record_of_a_user_who_comes_and_goes_stays_small():
    """Warnings that are scored and returned from are dropped."""
    solo = buyer(after="2d", lead="1d")
    for day in range(2, 30, 3):
        solo.tell(f"2025-06-{day:02} 10:00")
    assert solo.user.churn.raised == 10
    assert len(solo.user.churn.warnings) <= 1


def test_the_control_group_is_marked():
    """All of it at a share of 1."""
    solo = buyer(control=1)
    solo.wait(CHURNED)
    assert [warning["control"] for warning in solo.out.warnings] == [True, True, True]


def test_without_churn_nobody_is_ever_warned():
    """`churn_state` is a feature all the same."""
    solo = Solo(STATES)
    solo.tell(LAST)
    solo.wait("2030-01-01")
    assert solo.says("churn_state") == "none"
    assert not solo.warnings


def test_an_erasure_ends_open_warnings_unscored():
    """They are told of only to be counted: not those that were scored before."""
    solo = buyer(after="5d", lead="4d")
    solo.tell("2025-04-03 10:00")
    solo.wait("2025-04-04 10:00")
    said = len(solo.warnings)
    solo.tell("2025-04-04 11:00", "erase")
    assert len(solo.warnings) == said
    assert [warning["status"] for warning in solo.out.ended] == ["erased", "erased"]
    assert {warning["warning_id"] for warning in solo.out.ended} == {
        warning["warning_id"] for warning in solo.out.warnings
    }
    assert not solo.wait("2026-01-01")
    solo = buyer()
    solo.wait(CHURNED)
    solo.tell("2025-05-02 10:00", "erase")
    assert not solo.out.ended
    assert solo.user.rhythm.last_ms is None


# -- predicted

# One order alone, by these: P(nothing for 33 days) reaches 0.7 after 30.7266 days.
SOME = {"m0": 3, "kappa0": 0.6, "a0": 2.8, "b0": 1.4, "a": 0.3, "b": 1.2}


def predicted(probability: float = 0.7, **content: Any) -> dict[str, Any]:
    """A ``churn`` of that mode."""
    return {
        "mode": "predicted",
        "after": "30d",
        "lead": "3d",
        "probability": probability,
        "parameters": SOME,
    } | content


def patient(**content: Any) -> Solo:
    """Somebody who ordered at LAST, warned of by a prediction."""
    solo = Solo(STATES, churn=predicted(**content))
    solo.tell(LAST, amount=12.5)
    return solo


# From 1 April 10:00: raised 30.7266 days later, lost 3 days after that, known to be 30 later.
DUE, LOST, MATURE = "2025-05-02T03:26:16.858", "2025-05-05T03:26:16.858", "2025-06-04T03:26:16.858"


def test_a_predicted_silence_is_warned_of_churned_and_scored():
    """One deadline at a time, to the millisecond; the tag last at each instant."""
    solo = patient()
    assert solo.deadline == DUE[:19]
    assert not solo.wait("2025-05-02 03:26:16.857")
    assert solo.wait(DUE)
    assert solo.says("churn_state") == "warned"
    assert solo.deadline == MATURE[:19]
    assert not solo.wait(LOST)
    assert not solo.wait("2025-06-04 03:26:16.857")
    assert solo.says("churn_state") == "warned"
    assert solo.wait(MATURE)
    assert solo.says("churn_state") == "churned"
    assert solo.deadline is None
    assert solo.warnings == [
        ("raised", DUE[:19]),
        ("churned", MATURE[:19]),
        ("scored", MATURE[:19]),
    ]
    assert solo.changes == [
        ("none", "2025-04-01T10:00:00", "event"),
        ("warned", DUE[:19], "time"),
        ("churned", MATURE[:19], "time"),
    ]


def test_a_record_of_a_prediction_says_how_probable_it_was():
    """The same in every status: what was known when it was raised."""
    solo = patient()
    solo.wait(MATURE)
    solo.tell("2025-06-05 10:00")
    assert [warning["status"] for warning in solo.out.warnings] == [
        *("raised", "churned", "scored", "returned")
    ]
    for warning in solo.out.warnings:
        assert {key: warning[key] for key in ("raised_at", "churn_at", "matures_at")} == {
            "raised_at": DUE + "+08:00",
            "churn_at": LOST + "+08:00",
            "matures_at": MATURE + "+08:00",
        }
        assert (warning["mode"], warning["probability"]) == ("predicted", 0.7)
    assert len({warning["warning_id"] for warning in solo.out.warnings}) == 1
    assert solo.out.warnings[2]["right"] is True
    assert solo.out.warnings[3]["returned_from"] == "churned"


def test_only_what_is_rather_probable_is_red():
    """A first warning is raised at what was asked for; or a day after, if that is past it."""
    assert _raised(patient(probability=0.7))["level"] == "red"
    assert _raised(patient(probability=0.6))["level"] == "red"
    assert _raised(patient(probability=0.59))["level"] == "yellow"
    at_once = _raised(patient(probability=0.4))
    assert (at_once["raised_at"][:19], at_once["level"]) == ("2025-04-02T10:00:00", "yellow")
    assert at_once["probability"] == 0.474367


def _raised(solo: Solo) -> dict[str, Any]:
    solo.wait("2025-07-01")
    return solo.out.warnings[0]


@pytest.mark.parametrize(
    ("at", "right", "states"),
    [
        ("2025-05-02 03:26:16.858", True, ["raised", "returned", "scored"]),  # at the raising
        ("2025-05-02 03:26:16.859", False, ["raised", "returned", "scored"]),
        ("2025-06-04 03:26:16.857", False, ["raised", "returned", "scored"]),
        ("2025-06-04 03:26:16.858", True, ["raised", "churned", "scored", "returned"]),
    ],
)
def test_a_prediction_is_wrong_where_an_order_comes_before_it_matures(at, right, states):
    """Inside the open interval; the user is back at once, and judged only then."""
    solo = patient()
    assert solo.tell(at) == "applied"
    assert solo.says("churn_state") == "none"
    solo.wait("2025-06-04 03:26:17")
    assert [status for status, _ in solo.warnings][: len(states)] == states
    scored = [warning for warning in solo.out.warnings if warning["status"] == "scored"]
    assert scored[0]["right"] is right


def test_an_order_in_time_puts_the_prediction_off():
    """It is made anew from the rhythm that there is then: 13.9555 days after two, a week apart."""
    solo = patient(probability=0.4)
    solo.tell("2025-04-02 09:59:59.999")  # of the first occasion: as if it had not been
    assert solo.deadline == "2025-04-02T10:00:00"
    solo = patient(probability=0.7)
    solo.tell("2025-04-08 10:00")
    solo.wait("2025-05-12 09:41:14")
    assert not solo.warnings
    solo.wait("2025-05-12 09:41:15")
    assert solo.warnings == [("raised", "2025-05-12T09:41:14")]  # 33.98697348 days


def test_a_late_order_inside_the_interval_refutes_a_prediction():
    """It moves the rhythm too, where it is the latest."""
    solo = patient()
    solo.wait("2025-05-20 10:00")
    solo.tell("2025-05-20 10:00", "updated")
    assert solo.tell("2025-05-14 10:00", time="2025-05-20 10:00") == "late"
    assert solo.warnings[-1] == ("returned", "2025-05-20T10:00:00")
    assert solo.user.rhythm.x == 1
    solo.wait(MATURE)
    assert solo.warnings[2:] == [("scored", MATURE[:19])]
    assert solo.out.warnings[-1]["right"] is False
    assert solo.says("churn_state") == "none"


def test_a_late_order_of_an_earlier_occasion_starts_no_new_rhythm():
    """No gap is negative. It welcomes the user, and does not put off the churn."""
    solo = patient()
    solo.wait(DUE)
    rhythm = solo.user.rhythm
    for at in ("2025-03-30 10:00", "2025-04-02 09:59"):
        solo.tell("2025-05-02 10:00", "updated")
        assert solo.tell(at, time="2025-05-02 10:00") in ("late", "too_late")
    assert solo.user.rhythm == rhythm
    solo = patient(probability=0.4)
    solo.wait("2025-04-02 10:00")
    assert solo.tell("2025-04-02 09:00", time="2025-04-02 10:00") == "late"
    assert solo.says("churn_state") == "none"
    assert solo.warnings[-1][0] == "returned"
    solo.wait("2025-05-05 10:00")
    assert solo.warnings[2:] == [
        ("churned", "2025-05-05T10:00:00"),
        ("scored", "2025-05-05T10:00:00"),
    ]
    assert solo.says("churn_state") == "churned"


def test_nobody_is_predicted_who_never_ordered_nor_what_never_gets_probable():
    """Where nobody is ever gone, and gaps are long, ten years are not enough."""
    solo = Solo(STATES, churn=predicted())
    solo.tell(LAST, "registered")
    assert solo.deadline is None
    sure = {"m0": 15, "kappa0": 1000, "a0": 1000, "b0": 0.001, "a": 0, "b": 1}
    solo = Solo(STATES, churn=predicted(0.99, parameters=SOME | {"a": 0}, after="3000d"))
    solo.tell(LAST)
    assert solo.deadline is None
    solo = Solo(STATES, churn=predicted(0.99, parameters=sure))
    solo.tell(LAST)
    assert solo.deadline == "2025-04-02T10:00:00"  # nobody orders that often


def test_without_parameters_the_generic_ones_are_used():
    """And without a probability, 0.4."""
    solo = Solo(STATES, churn={"mode": "predicted", "after": "30d", "lead": "3d"})
    solo.tell(LAST)
    delay_ms = Model(GENERIC, horizon_ms=33 * DAY_MS, probability=0.4).delay_ms(solo.user.rhythm)
    assert solo.table.deadline_ms(solo.user) == solo.ms(LAST) + delay_ms


def test_a_prediction_is_made_only_where_it_is_asked_for_and_then_kept():
    """Orders that follow each other within the day, or by days, do not wait for it."""
    solo = patient()
    for at in ("2025-04-01 12:00", "2025-04-01 23:00", "2025-04-02 09:00", "2025-04-10 10:00"):
        solo.tell(at)
        assert solo.user.churn.due_ms is None
    assert solo.deadline
    due_ms = solo.user.churn.due_ms
    assert due_ms is not None
    solo.user = solo.table.decode(solo.table.encode(solo.user))
    assert solo.user.churn.due_ms == due_ms
    solo.tell("2025-04-10 11:00")  # of the same occasion
    assert solo.user.churn.due_ms == due_ms
    solo.tell("2025-04-30 10:00")
    assert solo.user.churn.due_ms is None


@pytest.mark.parametrize("before", ["silence", "predicted"])
def test_a_warning_ends_in_the_mode_in_which_it_was_raised(before):
    """Definitions that change the mode leave it as it is: its id, its instants, its label."""
    silence = {"mode": "silence", "after": "30d", "lead": "3d"}
    modes = {"silence": silence, "predicted": predicted()}
    (after,) = modes.keys() - {before}
    solo = Solo(STATES, churn=modes[before])
    solo.tell(LAST)
    solo.wait("2025-05-02 03:26:17" if before == "predicted" else RAISED)
    assert [status for status, _ in solo.warnings] == ["raised"]
    solo.table = Purchases(definitions(STATES, churn=modes[after]))
    solo.wait("2025-07-01")
    solo.tell("2025-07-01 10:00")
    assert [w["status"] for w in solo.out.warnings] == ["raised", "churned", "scored", "returned"]
    for key in ("warning_id", "mode", "probability", "matures_at"):
        assert len({warning[key] for warning in solo.out.warnings}) == 1
    assert solo.out.warnings[0]["mode"] == before
    solo.wait("2026-01-01")
    assert [w["status"] for w in solo.out.warnings[4:]] == ["raised", "churned", "scored"]
    assert {warning["mode"] for warning in solo.out.warnings[4:]} == {after}


def test_the_rhythm_is_kept_in_every_mode():
    """Predictions are as good on the day they are switched on as if they had always been."""
    with_silence = {"churn": {"mode": "silence", "after": "90d", "lead": "3d"}}
    always: dict[str, Any] = {"churn": predicted()}
    solos = [Solo(STATES, **content) for content in (always, with_silence, {})]
    for solo in solos:
        for at in ("2025-03-01 10:00", "2025-03-04 12:00", "2025-03-20 10:00", "2025-04-01 10:00"):
            solo.tell(at)
        solo.table = Purchases(definitions(STATES, **always))
    assert len({solo.table.deadline_ms(solo.user) for solo in solos}) == 1
    # Others than before predict something else.
    solo = solos[0]
    solo.table = Purchases(definitions(STATES, churn=predicted(0.3)))
    solo.tell("2025-04-01 11:00", "updated")
    assert solo.deadline != solos[1].deadline


# -- predicted, once more from the definition alone


@dataclass
class Guess:
    """A warning of the naive answer."""

    raised: int
    matures: int
    probability: float
    scored: bool = False
    returned: bool = False


@dataclass
class Naive:
    """A user alone: every order kept, every sum done over, every millisecond found by halving."""

    probability: float
    lead: int
    after: int
    clock: int = -NEVER
    newest: int = -NEVER
    state: str = "none"
    orders: list[int] = field(default_factory=list)
    occasions: list[int] = field(default_factory=list)
    guesses: list[Guess] = field(default_factory=list)
    raised_for: set[int] = field(default_factory=set)
    churned_for: set[int] = field(default_factory=set)
    said: list[tuple[Any, ...]] = field(default_factory=list)

    def silence(self, days: float) -> float:
        """F of the definition, from its formulas one by one."""
        gaps = [
            (later - earlier) / DAY_MS
            for earlier, later in zip(self.occasions, self.occasions[1:], strict=False)
        ]
        weights = [0.9**age for age in range(len(gaps))][::-1]
        logs = [math.log(gap) for gap in gaps]
        n = math.fsum(weights)
        mean = math.fsum(w * y for w, y in zip(weights, logs, strict=True)) / n if n else 0.0
        m2 = math.fsum(w * (y - mean) ** 2 for w, y in zip(weights, logs, strict=True))
        kappa = SOME["kappa0"] + n
        mu = (SOME["kappa0"] * SOME["m0"] + n * mean) / kappa
        alpha = SOME["a0"] + n / 2
        beta = SOME["b0"] + m2 / 2
        beta += SOME["kappa0"] * n * (mean - SOME["m0"]) ** 2 / (2 * kappa)
        sigma = math.sqrt(beta * (kappa + 1) / (alpha * kappa))
        nu = 2 * alpha
        gone = SOME["a"] / (SOME["a"] + SOME["b"] + len(gaps))
        z = (math.log(days) - mu) / sigma
        w = math.copysign(1, z) * (8 * nu + 1) / (8 * nu + 3)
        w *= math.sqrt(nu * math.log1p(z * z / nu))
        return gone + (1 - gone) * math.erfc(w / math.sqrt(2)) / 2

    def still(self, elapsed: int) -> float:
        """p of the definition."""
        days, more = elapsed / DAY_MS, (self.lead + self.after) / DAY_MS
        return self.silence(days + more) / self.silence(days)

    def due(self) -> int:
        """When the last occasion leads to a warning."""
        over = DAY_MS
        while self.still(over) < self.probability:
            if over >= 3650 * DAY_MS:
                return NEVER
            over = min(2 * over, 3650 * DAY_MS)
        under = DAY_MS if over > DAY_MS else over - 1
        while over - under > 1:
            middle = (over + under) // 2
            if self.still(middle) < self.probability:
                under = middle
            else:
                over = middle
        return self.occasions[-1] + over

    def instants(self) -> list[int]:
        """All that is to come."""
        found = [guess.matures for guess in self.guesses if not guess.scored]
        if self.occasions and self.occasions[-1] not in self.raised_for:
            found.append(self.due())
        return found

    def wait(self, until: int) -> None:
        """What is due, in order; at one instant the raising, the churn, the score."""
        while (due := min(self.instants(), default=NEVER)) <= until:
            self.clock = max(self.clock, due)
            last = self.occasions[-1]
            if last not in self.raised_for and due == self.due():
                self.raised_for.add(last)
                self.state = "warned"
                probability = self.still(due - last)
                self.guesses.append(Guess(due, due + self.lead + self.after, probability))
                self.said.append(("raised", due, round(probability, 6)))
            if last in self.raised_for - self.churned_for and due == self.guesses[-1].matures:
                self.churned_for.add(last)
                self.state = "churned"
                self.said.append(("churned", due, round(self.guesses[-1].probability, 6)))
            for guess in self.guesses:
                if not guess.scored and guess.matures == due:
                    guess.scored = True
                    right = not any(guess.raised < ts < guess.matures for ts in self.orders)
                    self.said.append(("scored", due, right))

    def order(self, ts: int) -> None:
        """An order that is not too late."""
        self.wait(ts)
        self.newest, self.clock = max(self.newest, ts), max(self.clock, ts)
        self.orders.append(ts)
        if not self.occasions or ts - self.occasions[-1] >= DAY_MS:
            self.occasions.append(ts)
        if self.guesses and not self.guesses[-1].returned:
            self.guesses[-1].returned = True
            self.said.append(("returned", self.clock, self.state))
        self.state = "none"


def said(out: Outputs, ms: Any) -> list[tuple[Any, ...]]:
    """What the records say of that."""
    detail = {"raised": "probability", "churned": "probability", "returned": "returned_from"}
    return [
        (record["status"], ms(record["at"]), record[detail.get(record["status"], "right")])
        for record in out.warnings
    ]


@settings(max_examples=300, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([(0.2, 3, 2), (0.4, 30, 3), (0.7, 30, 3), (0.7, 2, 1), (0.9, 300, 3)]),
)
def test_predictions_equal_a_naive_answer(chance, wanted):
    """Whatever comes late, in between, or on and beside the very instants."""
    probability, after, lead = wanted
    churn = predicted(probability, after=f"{after}d", lead=f"{lead}d")
    solo = Solo(STATES, churn=churn)
    naive = Naive(probability, lead * DAY_MS, after * DAY_MS)
    now = solo.ms("2025-04-01 10:00")
    for number in range(12):
        ts = instant(chance, naive, now)
        if chance.random() < 0.3:
            solo.table.fire(solo.user, ts, solo.out)
            naive.wait(ts)
        else:
            event = Order(event_id=f"e{number}", user_id="u1", ts=ts, amount_fen=1_000)
            outcome = solo.table.apply(solo.user, event, -NEVER, solo.out)
            assert (outcome == "too_late") == (ts <= naive.newest - 7 * DAY_MS)
            if outcome != "too_late":
                naive.order(ts)
        if chance.random() < 0.3:
            solo.table.deadline_ms(solo.user)
            solo.user = solo.table.decode(solo.table.encode(solo.user))
        now = max(now, ts)
        assert solo.says("churn_state") == naive.state
    assert said(solo.out, lambda at: solo.ms(at[:23])) == naive.said
    assert solo.table.deadline_ms(solo.user) == min(naive.instants(), default=NEVER)


def instant(chance: Random, naive: Naive, now: int) -> int:
    """A time for something to happen: soon, late, or where a deadline lies, give or take 1 ms."""
    kind = chance.randrange(6)
    if kind == 0 and (to_come := [at for at in naive.instants() if at < NEVER]):
        return max(chance.choice(to_come) + chance.choice([-1, 0, 0, 1]), now - 8 * DAY_MS)
    if kind == 1 and naive.occasions:
        return naive.occasions[-1] + DAY_MS + chance.choice([-1, 0, 1])
    if kind == 2:
        return now - chance.randrange(8 * DAY_MS)
    if kind == 3:
        return now + chance.randrange(40 * DAY_MS)
    return now + chance.randrange(4 * DAY_MS)
