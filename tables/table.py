"""One user's record in one domain, and what an event or the passing of time makes of it.

A ``Table`` is the logic of a domain under one set of definitions; it holds no users. What it
emits depends on the user's own events in order of arrival and on the time reached, on nothing
else: records may be encoded, decoded and fired at any moment in between.

The clock of a user is the largest event time applied, or the last instant at which a feature
of his changed by itself (a *deadline*), whichever is later; tags are evaluated as of it.
A deadline that can change no tag is not fired one by one: the clock catches up with it before
the next event. Domains subclass ``Table`` and ``User``; no Kafka, files or wall clock here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar
from zlib import crc32

from mypy_extensions import i64

from tables.calendar import NEVER, calendar_of
from tables.dedup import Blocks, MemoryBlocks, digest, forget, is_known, remember
from tables.events import Erase, Event
from tables.features import Constants, Features, Turn
from tables.identity import identify, is_control
from tables.kept import TagState
from tables.outputs import Outputs
from tables.packing import Reader
from tables.record import FIRST_DAY, NO_DAY, DayCounts, User, Values

__all__ = ["NEVER", "Outcome", "Outputs", "Table", "TagState", "User"]

Outcome = Literal["applied", "late", "duplicate", "too_late", "erased"]
Cause = dict[str, str]
_UNSET: Final = (None, False)  # what a tag is that the user does not have

PASSIVE: Final = FIRST_DAY + 1
"""The day of a user who was heard of, and never active."""


class Definition(Protocol):
    """One tag."""

    @property
    def name(self) -> str: ...
    @property
    def control(self) -> float | None: ...


class DomainRules(Protocol):
    """The tags of one domain, in order, compiled."""

    @property
    def tags(self) -> Sequence[Definition]: ...
    @property
    def defaults(self) -> tuple[Any, ...]: ...
    @property
    def evaluate(self) -> Callable[[Any], tuple[Any, ...]]: ...
    @property
    def evidence(self) -> Sequence[Callable[[Any], dict[str, Any]]]: ...
    @property
    def thresholds(self) -> Mapping[str, Constants]: ...


class Churn(Protocol):
    """When a user's silence becomes a warning (``tables/churn.py``)."""

    @property
    def mode(self) -> str: ...
    @property
    def after_ms(self) -> int: ...
    @property
    def lead_ms(self) -> int: ...
    @property
    def control(self) -> float | None: ...
    @property
    def probability(self) -> float: ...
    @property
    def parameters(self) -> Mapping[str, float] | None: ...


class Rules(Protocol):
    """The definitions: ``fingerprint`` differs where anything differs that decides outputs."""

    @property
    def version(self) -> int: ...
    @property
    def timezone(self) -> str: ...
    @property
    def max_lateness_ms(self) -> int: ...
    @property
    def attributes(self) -> Sequence[str]: ...
    @property
    def churn(self) -> Churn | None: ...
    @property
    def breakdown(self) -> str | None: ...
    @property
    def fingerprint(self) -> str: ...
    def domain(self, name: str) -> DomainRules: ...


U = TypeVar("U", bound=User)


@dataclass(frozen=True)
class Before:
    """The definitions that were in force until a switch, while users still have to be taken up.

    ``time_ms`` is the time that the domain had reached then; ``waits(user_id)``: nobody has looked
    at the user since. ``always_tell``: the profile has to know that a user was taken up, even where
    no tag of the domain changed by it.
    """

    table: "Table[Any]"
    time_ms: int
    waits: Callable[[str], bool]
    always_tell: bool


class Table(Generic[U]):
    """The logic of one domain under ``rules``.

    ``blocks`` is where ids of busy users go; whoever stores users replaces it. ``positions`` says
    where a tag stands in ``values``. ``before`` is there from a switch of definitions until all
    users are taken up.
    """

    name: ClassVar[str]
    features: ClassVar[Features]

    def __init__(self, rules: Rules) -> None:
        domain = rules.domain(self.name)
        self.blocks: Blocks = MemoryBlocks()
        self.before: Before | None = None
        self.calendar = calendar_of(rules.timezone)
        self._day = self.calendar.day
        self._day_start_ms = self.calendar.day_start_ms
        self._max_lateness_ms = rules.max_lateness_ms
        self._version = rules.version
        self._breaks_down = rules.breakdown is not None
        self._rules_id = crc32(rules.fingerprint.encode())
        self._tags = tuple(domain.tags)
        self.positions = {tag.name: position for position, tag in enumerate(self._tags)}
        self._defaults = tuple(domain.defaults)
        self._evaluate = domain.evaluate
        self._evidence = tuple(domain.evidence)
        turns = self.features.next_turns(domain.thresholds)
        self._midnights: list[Turn] = [turn for span, turn in turns if not span]
        self._leavings: list[Turn] = [turn for span, turn in turns if span]
        self._spans: list[int] = [span for span, _ in turns if span]
        self._changes = list(dict.fromkeys(self.features.changes.values()))

    # -- what a domain adds

    def made(self, user_id: str, rules: int, values: Values) -> U:
        """A record of which nothing is known but this."""
        raise NotImplementedError

    def take(self, user: U, event: Event, day: int, out: Outputs) -> None:
        """Apply an event to the record; ``day`` is the event's own, the clock has moved."""
        raise NotImplementedError

    def instant_ms(self, user: U) -> int:
        """The next deadline that is not the start of a day; may lie before the clock."""
        return NEVER

    def floor_ms(self, user: U) -> int:
        """An instant before which ``instant_ms`` does not lie: for those who ask often."""
        return self.instant_ms(user)

    def strike(self, user: U, due_ms: int, out: Outputs) -> bool:
        """Fire those deadlines of ``instant_ms`` that lie at ``due_ms``; whether there were any."""
        return False

    def last_instant_ms(self, user: U, time_ms: int) -> int:
        """The last instant after the clock up to ``time_ms``, other than the start of a day or
        one that was fired, at which a feature changes with no event; ``-NEVER`` if there is none.
        """
        return -NEVER

    def forget(self, user: U, out: Outputs) -> None:
        """The user is about to be erased: say what ends with that."""

    def adopt(self, user: U) -> None:
        """These definitions came into force: drop what they have no use for."""

    # -- one user

    def new(self, user_id: str) -> U:
        """The record of a user never heard of."""
        return self.made(user_id, self._rules_id, self._defaults)

    def encode(self, user: U) -> bytes:
        """The record as bytes."""
        return user.packed()

    def decode(self, row: bytes, at: int = 0) -> U:
        """The record that ``encode`` wrote, from ``at`` on."""
        user = self.made("", 0, ())
        user.read(Reader(row, at))
        return user

    def apply(self, user: U, event: Event, time_ms: int, out: Outputs) -> Outcome:
        """Apply one event: deadlines that come before it first, then it, then the tags.

        ``time_ms`` is the partition's time after the event before (``-NEVER`` before the
        first). "late" is applied too, to its own day; all other outcomes change nothing.
        """
        # The hot path of the service: flat on purpose.
        if type(event) is Erase:
            return self._erase(user, event, time_ms, out)
        ts_ms = event.ts
        if ts_ms <= user.erased_ms:
            return "erased"
        newest_ms = user.newest_ms
        horizon_ms = newest_ms - self._max_lateness_ms
        if ts_ms <= horizon_ms:
            return "too_late"
        event_hash = digest(event.event_id)
        if (event_hash in user.recent or user.spilled is not None) and is_known(
            user, event_hash, horizon_ms, self.blocks
        ):
            return "duplicate"
        if user.rules != self._rules_id:
            self._adopt(user, out)
        day = self._day(ts_ms)
        if time_ms > ts_ms:
            self._catch_up(user, ts_ms, time_ms, out)
        elif ts_ms >= user.hint_ms:
            if day == user.today + 1 and self.floor_ms(user) > ts_ms:
                self._pass_midnight(user, day, out)
            else:
                self.fire(user, ts_ms, out)
        outcome: Outcome = "late"
        if ts_ms >= user.clock_ms:
            outcome = "applied"
            user.clock_ms = ts_ms
            user.today = day
        if ts_ms > newest_ms:
            user.newest_ms = ts_ms
            horizon_ms = ts_ms - self._max_lateness_ms
        remember(user, event_hash, ts_ms, horizon_ms, self.blocks)
        self.take(user, event, day, out)
        values = self._evaluate(user)
        if values != user.values:
            self._emit(user, values, {"kind": "event", "event_id": event.event_id}, out)
        if day != user.heard_day:
            self._tell(user, event, day, out)
        # deadline_ms will find the next one exactly; until then nothing can be due before this.
        hint_ms = self._day_start_ms(user.today + 1)
        instant_ms = self.floor_ms(user)
        user.hint_ms = instant_ms if instant_ms < hint_ms else hint_ms
        return outcome

    def fire(self, user: U, time_ms: int, out: Outputs) -> bool:
        """Fire all deadlines up to ``time_ms``, in order.

        True where the record has to be written: a tag or a warning changed. Otherwise only the
        clock and the next deadline did, and both are found again from what was written before.
        """
        changed = user.rules != self._rules_id
        if changed:
            self._adopt(user, out)
        while (due_ms := self._next_ms(user)) <= time_ms:
            if due_ms > user.clock_ms:
                user.clock_ms = due_ms
                user.today = self._day(due_ms)
            changed |= self.strike(user, due_ms, out)
            values = self._evaluate(user)
            if values != user.values:
                self._emit(user, values, {"kind": "time"}, out)
                changed = True
        user.hint_ms = due_ms
        return changed

    def deadline_ms(self, user: U) -> int:
        """The next instant at which something may follow with no event; ``NEVER`` if none."""
        if user.rules != self._rules_id:
            before = self.before
            if before is not None and before.waits(user.user_id):
                return before.table.deadline_ms(user)
            self.renew(user)
        user.deadline_ms = user.hint_ms = due_ms = self._next_ms(user)
        return due_ms

    def _next_ms(self, user: U) -> int:
        day: i64 = NO_DAY
        if isinstance(user, DayCounts):
            for turn in self._midnights:
                candidate = turn.next_day(user)
                if candidate < day:
                    day = candidate
            oldest = user.cells[user.width] if len(user.cells) > user.width else NO_DAY
            for number, span in enumerate(self._spans):
                if oldest + span >= day:
                    break  # and those behind it take longer still
                candidate = self._leavings[number].next_day(user)
                if candidate < day:
                    day = candidate
        due_ms = self._day_start_ms(day)
        instant_ms = self.instant_ms(user)
        return instant_ms if instant_ms < due_ms else due_ms

    def _tell(self, user: U, event: Event, day: int, out: Outputs) -> None:
        """Have the profile told of the first event, each day's first activity, and signing up."""
        heard_day = user.heard_day
        is_known = heard_day != FIRST_DAY and heard_day != NO_DAY
        if event.is_activity:
            user.heard_day = day
            if is_known:
                out.active_day = day
                return
        elif is_known:
            return
        else:
            user.heard_day = PASSIVE
        out.heard = event.ts, day, event.is_activity, event.is_registration

    def _pass_midnight(self, user: U, day: int, out: Outputs) -> None:
        """Fire what one midnight alone may change: to look is cheaper than to ask whether to."""
        user.clock_ms = self._day_start_ms(day)
        user.today = day
        values = self._evaluate(user)
        if values != user.values:
            self._emit(user, values, {"kind": "time"}, out)

    def _catch_up(self, user: U, ts_ms: int, time_ms: int, out: Outputs) -> None:
        """Bring the clock to the last deadline before an event, those of no tag included."""
        self.fire(user, max(ts_ms, time_ms), out)
        if ts_ms >= time_ms or user.newest_ms == -NEVER:
            return  # what comes moves the clock at least as far, or starts it
        today = self._day(time_ms)
        last = FIRST_DAY
        for change in self._changes:
            last = max(last, change.last_turn(user, today))
            if last == today:
                break
        last_ms = self.last_instant_ms(user, time_ms)
        if last > user.today:
            last_ms = max(last_ms, self._day_start_ms(last))
        if last_ms > user.clock_ms:
            user.clock_ms = last_ms
            user.today = self._day(last_ms)

    def _erase(self, user: U, event: Event, time_ms: int, out: Outputs) -> Outcome:
        """Take back every tag, and leave the record as if the user had never been heard of."""
        if event.ts <= user.erased_ms:
            return "erased"
        if user.rules != self._rules_id:
            self._adopt(user, out)
        self._catch_up(user, event.ts, time_ms, out)
        user.clock_ms = max(user.clock_ms, event.ts)
        if user.values != self._defaults:
            self._emit(user, self._defaults, {"kind": "erase"}, out)
        out.erased_ms = event.ts, user.clock_ms
        self.forget(user, out)
        forget(user, self.blocks)
        fresh = self.new(user.user_id)
        fresh.deadline_ms = user.deadline_ms  # its entry in the index has to go too
        fresh.erased_ms = event.ts
        user.become(fresh)
        return "applied"

    # -- other definitions

    def renew(self, user: U) -> None:
        """Read a record by these definitions, as if it had been written under them."""
        user.rules = self._rules_id
        user.hint_ms = -NEVER  # it was true of other tags
        known = user.tags
        user.values = tuple(
            known[tag.name].value
            if tag.name in known and known[tag.name].value not in _UNSET
            else default
            for tag, default in zip(self._tags, self._defaults, strict=True)
        )
        self.adopt(user)

    def is_current(self, user: U) -> bool:
        """Whether these definitions are in force for the user."""
        return user.rules == self._rules_id

    def take_up(self, user: U, out: Outputs) -> None:
        """Bring these definitions into force for a user who waits for it."""
        if user.rules != self._rules_id:
            self._adopt(user, out)

    def stands(self, user: U, written: U) -> bool:
        """Whether a record may stay as it was written although the user was taken up, in silence.

        It may where, read by these definitions, it leads to the same: no deadline of theirs lies
        between its clock and the user's, and it will be looked at in time for the next one.
        """
        before, due_ms = self.before, self._next_ms(user)
        self.renew(written)
        if before is None or due_ms <= before.time_ms or due_ms < written.deadline_ms:
            return False
        if self._next_ms(written) != due_ms:
            return False
        written.rules, written.values = user.rules, user.values
        written.clock_ms, written.today = user.clock_ms, user.today
        written.deadline_ms, written.hint_ms = user.deadline_ms, user.hint_ms
        return self.encode(user) == self.encode(written)

    def reach(self, user: U, time_ms: int, out: Outputs) -> None:
        """As ``fire``, for whoever reads features: the clock passes deadlines of no tag too."""
        self._catch_up(user, -NEVER, time_ms, out)

    def finish(self, user: U, time_ms: int, out: Outputs) -> None:
        """Other definitions are in force since ``time_ms``: say what these have to say until then,
        or until the user's clock where that is later.
        """
        if user.rules != self._rules_id:
            self.renew(user)
        self._catch_up(user, -NEVER, max(user.clock_ms, time_ms), out)

    def gone(self, user: U, kept: Mapping[str, int]) -> Iterator[Definition]:
        """The tags that the user has by these definitions and that are not among ``kept``."""
        for definition, value in zip(self._tags, user.values, strict=True):
            if definition.name not in kept and value not in _UNSET:
                yield definition

    def _adopt(self, user: U, out: Outputs) -> None:
        """Bring a record to these definitions, before anything else happens to the user.

        Once everybody has been looked at, nothing follows from it: a record that still is of other
        definitions says the same under these.
        """
        before = self.before
        if before is None or user.newest_ms == -NEVER or not before.waits(user.user_id):
            self.renew(user)
            return
        before.table.finish(user, before.time_ms, out)
        gone = list(before.table.gone(user, self.positions))
        said = len(out.changes)
        self.renew(user)
        cause = {"kind": "rules"}
        for definition in gone:
            value = user.tags[definition.name].value
            unset = False if value is True else None
            self._change(user, definition, unset, value, cause, {}, out)
        values = self._evaluate(user)
        if values != user.values:
            self._emit(user, values, cause, out)
        elif len(out.changes) != said or before.always_tell:
            out.steps.append((len(out.changes), len(out.warnings), user.clock_ms))

    # -- what is said

    def _emit(self, user: U, values: Values, cause: Cause, out: Outputs) -> None:
        """Make ``values`` the user's, and a change record of every one that differs."""
        erased = cause["kind"] == "erase"
        for position, definition in enumerate(self._tags):
            value, previous = values[position], user.values[position]
            if value != previous:
                evidence = {} if erased else self._evidence[position](user)
                self._change(user, definition, value, previous, cause, evidence, out)
        out.steps.append((len(out.changes), len(out.warnings), user.clock_ms))
        user.values = values

    def _change(
        self,
        user: U,
        definition: Definition,
        value: Any,
        previous: Any,
        cause: Cause,
        evidence: dict[str, Any],
        out: Outputs,
    ) -> None:
        effective_ms, tag, user_id = user.clock_ms, definition.name, user.user_id
        # After an erasure changes are counted anew, and what was forgotten may happen again.
        again = () if user.erased_ms == -NEVER else (user.erased_ms,)
        state = user.tags.get(tag)
        number = state.number + 1 if state else 1
        user.tags[tag] = TagState(value, effective_ms, number)
        change = {
            "change_id": identify(
                user_id, self.name, tag, number, value, effective_ms, cause, *again
            ),
            "user_id": user_id,
            "domain": self.name,
            "tag": tag,
            "value": value,
            "previous": previous,
            "effective_at": self.calendar.iso(effective_ms),
            "cause": cause,
            "features": evidence,
            "rules_version": self._version,
        }
        if is_control(tag, user_id, definition.control):
            change["control"] = True
        out.changes.append(change)
