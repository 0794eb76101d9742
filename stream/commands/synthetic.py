"""Made-up events: a shop whose customers register, order, return goods and fall silent.

In all domains, if asked: they look around, put things into the cart and watch, turn to service,
are reached by the shop, and answer or have enough of it.

Promise: an endless stream in order of arrival, the same for the same arguments on every
machine. Each customer has a rhythm of his own, log-normal gaps around his persona's; so
there are daily buyers with long streaks, and one-off buyers who never come back.
``late`` and ``repeats`` are shares of events that arrive out of order, by hours, or again.

Bounds: nothing is late by more than six days, so that a `max_lateness` of seven admits all
of it. Memory grows with the number of customers: about 200 bytes each.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any

import orjson

from stream.commands.feeding import Item

DAY_MS = 86_400_000
RAMP_DAYS = 30.0  # over which customers register, where no span is given
MOST_LATE_MS = 6 * DAY_MS
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Persona:
    """How a kind of customer behaves. Gaps and amounts are log-normal: median and sigma."""

    name: str
    share: float
    gap_days: float
    gap_sigma: float
    amount_yuan: float
    amount_sigma: float
    coupons: float  # share of orders
    pauses: float  # share of orders after which he is gone for ten times as long

    @property
    def orders_a_day(self) -> float:
        """In the long run."""
        mean_gap = self.gap_days * math.exp(self.gap_sigma**2 / 2)
        return 1 / (mean_gap * (1 + 9 * self.pauses))


PERSONAS = (
    Persona("daily", 0.04, 0.45, 0.30, 32, 0.5, 0.30, 0.001),
    Persona("weekly", 0.26, 6.0, 0.60, 110, 0.7, 0.35, 0.02),
    Persona("monthly", 0.45, 24.0, 0.80, 260, 0.8, 0.25, 0.06),
    Persona("seasonal", 0.25, 70.0, 0.70, 1_900, 1.3, 0.10, 0.30),
)
REFUNDS, UPDATES = 0.04, 0.01  # per order

# In all domains: visits per order and what is done in one, contacts per order, days between two
# reaches, and what becomes of a reach.
VISITS, STEPS = 2.0, (1, 6)
CONTACTS = 0.08
REACH_DAYS = 6.0
RESPONSES, FAREWELLS = 0.25, 0.01
EVENTS_PER_ORDER = 1 + VISITS * sum(STEPS) / 2 + CONTACTS

ENGAGEMENT = (
    *(("view", 0.50), ("search", 0.14), ("watch", 0.14), ("cart", 0.10)),
    *(("favorite", 0.06), ("share", 0.04), ("review", 0.02)),
)
KINDS = (("consult", 0.6), ("complaint", 0.25), ("other", 0.15))
REACHES = (("app_push", 0.45), ("sms", 0.2), ("email", 0.2), ("wechat", 0.15))

REGIONS = ("east", "south", "north", "west", "abroad")
AGES = ("18-24", "25-34", "35-44", "45-54", "55+")
GENDERS = ("f", "m", None)
CHANNELS = ("search", "friend", "advert", "store")


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event and when it arrives; its own ``ts`` is earlier where it is late."""

    at_ms: int
    domain: str
    event: dict[str, Any]

    def item(self) -> Item:
        """The event on its way to its source topic."""
        return Item(self.domain, self.event["user_id"].encode(), orjson.dumps(self.event))


def purchases(
    *,
    seed: int,
    users: int,
    start_ms: int,
    days: float | None = None,
    events: int | None = None,
    late: float = 0.0,
    repeats: float = 0.0,
) -> Iterator[Arrival]:
    """Events of the domain purchases, endlessly, from ``start_ms`` on.

    Customers register over the first half of ``days``. With ``events`` too, rhythms are
    quickened or slowed so that about so many fall into ``days``; without, they are natural.
    """
    shop = _Shop(seed, late, repeats)
    ramp_ms = (days / 2 if days else RAMP_DAYS) * DAY_MS
    if days and events:
        natural = users * 0.75 * days * sum(item.share * item.orders_a_day for item in PERSONAS)
        shop.pace = max(events - users, users / 4) / (natural * (1 + REFUNDS + UPDATES))
    return shop.run(users, start_ms, ramp_ms)


def everything(
    *,
    seed: int,
    users: int,
    start_ms: int,
    days: float | None = None,
    events: int | None = None,
    late: float = 0.0,
    repeats: float = 0.0,
) -> Iterator[Arrival]:
    """Events of all domains, of the same customers; otherwise as `purchases`."""
    shop = _Town(seed, late, repeats)
    ramp_ms = (days / 2 if days else RAMP_DAYS) * DAY_MS
    if days and events:
        orders = users * 0.75 * days * sum(item.share * item.orders_a_day for item in PERSONAS)
        reaches = users * 0.75 * days / REACH_DAYS * (1 + RESPONSES)
        natural = orders * (EVENTS_PER_ORDER + REFUNDS + UPDATES) + reaches
        shop.pace = max(events - users, users / 4) / natural
    return shop.run(users, start_ms, ramp_ms)


def live(arrivals: Iterator[Arrival]) -> Iterator[Arrival]:
    """The same events as if they happened now; what is late stays late by as much."""
    for arrival in arrivals:
        now_ms = time.time_ns() // 1_000_000
        lateness_ms = arrival.at_ms - arrival.event["ts"]
        yield Arrival(now_ms, arrival.domain, {**arrival.event, "ts": now_ms - lateness_ms})


#: What happens at a time, to whom: yields what arrives then and expects what follows.
Step = Callable[..., Iterator[Arrival]]


class _Shop:
    """What will happen next, as a heap of steps ordered by arrival."""

    def __init__(self, seed: int, late: float, repeats: float) -> None:
        self.pace = 1.0
        self._seed = seed
        self._late = late
        self._repeats = repeats
        self._random = Random(seed)
        self._numbers = count(1)
        self._ties = count()
        self._heap: list[tuple[int, int, Step, tuple[Any, ...]]] = []

    def run(self, users: int, start_ms: int, ramp_ms: float) -> Iterator[Arrival]:
        registrations = ((start_ms + int(ramp_ms * index / users), index) for index in range(users))
        self._expect(registrations)
        while True:
            at_ms, _, step, about = heapq.heappop(self._heap)
            yield from step(at_ms, *about)

    def _expect(self, registrations: Iterator[tuple[int, int]]) -> None:
        # One at a time: a million customers to come would be a million entries.
        if following := next(registrations, None):
            at_ms, index = following
            self._push(at_ms, self._register, index, registrations)

    def _register(
        self, at_ms: int, index: int, registrations: Iterator[tuple[int, int]]
    ) -> Iterator[Arrival]:
        random = self._random
        persona = _persona(index)
        attributes = {
            "region": random.choice(REGIONS),
            "age_band": random.choice(AGES),
            "gender": random.choice(GENDERS),
            "acquisition_channel": random.choice(CHANNELS),
            "persona": persona.name,
        }
        yield from self._happen(at_ms, index, "registered", attributes=attributes)
        self._push(at_ms + self._days(0.5, 1.0), self._order, index, persona)
        self._expect(registrations)

    def _order(self, at_ms: int, index: int, persona: Persona) -> Iterator[Arrival]:
        random = self._random
        fen = max(1, round(_lognormal(random, persona.amount_yuan, persona.amount_sigma) * 100))
        coupon = random.random() < persona.coupons
        yield from self._happen(at_ms, index, "order", amount=fen / 100, coupon=coupon)
        if random.random() < UPDATES:
            moved = {"region": random.choice((*REGIONS, None))}
            yield from self._happen(at_ms, index, "updated", attributes=moved)
        if random.random() < REFUNDS:
            back_fen = fen if random.random() < 0.6 else random.randint(1, fen)
            self._push(at_ms + self._days(3.0, 0.5), self._refund, index, back_fen)
        gap_ms = self._days(persona.gap_days, persona.gap_sigma)
        if random.random() < persona.pauses:
            gap_ms *= 10
        self._push(at_ms + gap_ms, self._order, index, persona)

    def _refund(self, at_ms: int, index: int, fen: int) -> Iterator[Arrival]:
        return self._happen(at_ms, index, "refund", amount=fen / 100)

    def _happen(self, ts_ms: int, index: int, kind: str, /, **fields: Any) -> Iterator[Arrival]:
        """An event that arrives now, or later where it is one of the late; maybe again."""
        event = {
            "event_id": f"s{self._seed}-{next(self._numbers):08d}",
            "user_id": f"user-{index:06d}",
            "type": kind,
            "ts": ts_ms,
            **fields,
        }
        random = self._random
        if self._late and random.random() < self._late:
            self._push(ts_ms + self._delay_ms(2.0), self._arrive, event)
        else:
            yield from self._arrive(ts_ms, event)
        if self._repeats and random.random() < self._repeats:
            self._push(ts_ms + self._delay_ms(0.2), self._arrive, event)

    def _arrive(self, at_ms: int, event: dict[str, Any]) -> Iterator[Arrival]:
        yield Arrival(at_ms, DOMAIN_OF.get(event["type"], "purchases"), event)

    def _delay_ms(self, hours: float) -> int:
        return min(int(_lognormal(self._random, hours, 1.2) * 3_600_000), MOST_LATE_MS)

    def _days(self, median: float, sigma: float) -> int:
        return max(1, int(_lognormal(self._random, median, sigma) * DAY_MS / self.pace))

    def _push(self, at_ms: int, step: Step, *about: Any) -> None:
        # The tie keeps the order deterministic, and steps from being compared.
        heapq.heappush(self._heap, (at_ms, next(self._ties), step, about))


class _Town(_Shop):
    """The same in all domains."""

    def _register(
        self, at_ms: int, index: int, registrations: Iterator[tuple[int, int]]
    ) -> Iterator[Arrival]:
        yield from super()._register(at_ms, index, registrations)
        self._push(at_ms + self._days(0.1, 1.0), self._visit, index, _persona(index))
        self._push(at_ms + self._days(REACH_DAYS / 2, 0.7), self._reach, index)

    def _order(self, at_ms: int, index: int, persona: Persona) -> Iterator[Arrival]:
        yield from super()._order(at_ms, index, persona)
        if self._random.random() < CONTACTS:
            self._push(at_ms + self._days(1.0, 1.0), self._contact, index)

    def _visit(self, at_ms: int, index: int, persona: Persona) -> Iterator[Arrival]:
        """A handful of steps, some minutes apart, and sooner or later the next visit."""
        random = self._random
        for number in range(random.randint(*STEPS)):
            self._push(at_ms + number * random.randint(20_000, 180_000), self._step, index)
        gap_ms = self._days(persona.gap_days / VISITS, persona.gap_sigma)
        if random.random() < persona.pauses:
            gap_ms *= 10
        self._push(at_ms + gap_ms, self._visit, index, persona)
        return iter(())

    def _step(self, at_ms: int, index: int) -> Iterator[Arrival]:
        random = self._random
        kind = _one_of(random, ENGAGEMENT)
        fields: dict[str, Any] = {}
        if kind == "watch":
            fields["seconds"] = round(_lognormal(random, 90.0, 1.0), 1)
        elif kind == "review" and random.random() < 0.9:
            fields["rating"] = random.choice((1, 2, 3, 4, 4, 5, 5, 5))
        return self._happen(at_ms, index, kind, **fields)

    def _contact(self, at_ms: int, index: int) -> Iterator[Arrival]:
        random = self._random
        channel = random.choice(("phone", "chat", "store"))
        return self._happen(at_ms, index, "contact", channel=channel, kind=_one_of(random, KINDS))

    def _reach(self, at_ms: int, index: int) -> Iterator[Arrival]:
        random = self._random
        channel = _one_of(random, REACHES)
        yield from self._happen(at_ms, index, "reach", channel=channel)
        for share, kind in ((RESPONSES, "response"), (FAREWELLS, "unsubscribe")):
            if random.random() < share:
                self._push(at_ms + self._days(0.05, 1.0), self._answer, index, kind, channel)
        self._push(at_ms + self._days(REACH_DAYS, 0.7), self._reach, index)

    def _answer(self, at_ms: int, index: int, kind: str, channel: str) -> Iterator[Arrival]:
        return self._happen(at_ms, index, kind, channel=channel)


def _one_of(random: Random, shares: tuple[tuple[str, float], ...]) -> str:
    """One of the names, as often as its share says."""
    names, weights = zip(*shares, strict=True)
    chosen: str = random.choices(names, weights)[0]
    return chosen


def _persona(index: int) -> Persona:
    """Personas in their shares, evenly among any run of customers."""
    place = index * GOLDEN % 1
    for persona in PERSONAS:
        place -= persona.share
        if place < 0:
            return persona
    return PERSONAS[-1]


def _lognormal(random: Random, median: float, sigma: float) -> float:
    return median * math.exp(random.gauss(0.0, sigma))


#: The domain of every type that is not of purchases.
DOMAIN_OF = {
    "contact": "service",
    **dict.fromkeys((kind for kind, _ in ENGAGEMENT), "engagement"),
    **dict.fromkeys(("reach", "response", "unsubscribe"), "outreach"),
}
