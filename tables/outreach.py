"""Outreach: what a user was sent on which channel, what he answered, and what he does not want.

Windows: hours slide, ``(clock - span, clock]``; days are whole local days, the clock's own
included; the month is the local calendar month of the clock. Late events: counted in their own
place. Source: topic ``outreach``.

An instant at which an hour window changes is a deadline only where a tag could change with it.
"""

from collections.abc import Callable
from typing import Final

from librt.strings import BytesWriter
from msgspec import msgpack
from mypy_extensions import mypyc_attr

from tables.calendar import HOUR_MS
from tables.days import DayTable, month_sum_of, ratio_of, sum_of
from tables.events import Event as AnyEvent
from tables.events.outreach import (
    CHANNELS,
    Channel,
    Event,
    Reach,
    Response,
    Subscribe,
    Unsubscribe,
)
from tables.features import Features, Month, Rate, Window, levels_of
from tables.hours import Hours
from tables.kept import Held
from tables.packing import Reader, pack, put, put_bytes, put_packed
from tables.record import DayCounts, Values
from tables.table import NEVER, Outputs, Rules

__all__ = ["CHANNELS", "Event", "Outreach", "Recipient", "features"]

# The columns of an entry: reaches and responses on any channel, app pushes, SMS.
REACHES: Final = 1
RESPONSES: Final = 2
PUSHES: Final = 3
TEXTS: Final = 4
COLUMNS: Final = 4

OptedOut = dict[Channel, tuple[int, bool]]
"""The channels that a user ever spoke of: when he last did, and whether that was to leave."""

_unpack_held: Callable[[bytes], Held] = msgpack.Decoder(Held).decode
_unpack_opted_out: Callable[[bytes], OptedOut] = msgpack.Decoder(OptedOut).decode


@mypyc_attr(acyclic=True)
class Recipient(DayCounts):
    """A user in the domain outreach: app pushes and SMS that windows of hours still hold, reaches
    since the last response, and the channels that he does not want.
    """

    def __init__(self, user_id: str, rules: int, values: Values) -> None:
        super().__init__(user_id, rules, values, COLUMNS)
        self.pushed = Held()
        self.texted = Held()
        self.unanswered = 0
        self.opted_out: OptedOut = {}

    def write(self, to: BytesWriter) -> None:
        """Append the record as bytes."""
        super().write(to)
        put_bytes(to, pack(self.pushed))
        put_bytes(to, pack(self.texted))
        put(to, self.unanswered)
        put_packed(to, self.opted_out)

    def read(self, row: Reader) -> None:
        """Take over what ``write`` wrote."""
        super().read(row)
        self.pushed = _unpack_held(row.bytes())
        self.texted = _unpack_held(row.bytes())
        self.unanswered = row.number()
        opted_out = row.bytes()
        self.opted_out = _unpack_opted_out(opted_out) if opted_out else {}


_PUSH_3H: Final = Hours(3 * HOUR_MS, first_row=1 << 30)
_SMS_48H: Final = Hours(48 * HOUR_MS, first_row=1 << 31)

features: Final = Features()

# App pushes of the local day of the clock, SMS of its month; of any channel, the last 30 days.
features.add(Window(1, PUSHES), "push_day")(sum_of(1, PUSHES))
features.add(Month(TEXTS), "sms_month")(month_sum_of(TEXTS))
features.add(Window(30, REACHES), "reaches_30d")(sum_of(30, REACHES))
features.add(Window(30, RESPONSES), "responses_30d")(sum_of(30, RESPONSES))
features.add(Rate(30, RESPONSES, REACHES), "response_rate_30d")(ratio_of(30, RESPONSES, REACHES))


@features.add()
def push_3h(user: Recipient) -> int:
    """App pushes in the last 3 hours: ``(clock - 3 h, clock]``. Source: ``reach``.

    Late push: counted while inside the window.
    """
    return _PUSH_3H.count(user.pushed, user.clock_ms)


@features.add()
def sms_48h(user: Recipient) -> int:
    """SMS in the last 48 hours: ``(clock - 48 h, clock]``. Source: ``reach``.

    Late SMS: counted while inside the window.
    """
    return _SMS_48H.count(user.texted, user.clock_ms)


@features.add()
def unanswered(user: Recipient) -> int:
    """Reaches since the last response, on any channel, in order of arrival.

    Source: ``reach``, ``response``. Late event: counts as one that arrives now.
    """
    return user.unanswered


def _opted_out(channel: Channel) -> Callable[[Recipient], bool]:
    """The reader of whether the user left a channel: his latest word by event time, the later
    arrival among equals. Source: ``unsubscribe``, ``subscribe``.
    """

    def read(user: Recipient) -> bool:
        told = user.opted_out.get(channel)
        return told is not None and told[1]

    return read


for _channel in CHANNELS:
    features.add(name=f"opted_out_{_channel}")(_opted_out(_channel))


class Outreach(DayTable[Recipient]):
    """The logic of the domain outreach."""

    name = "outreach"
    features = features

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        thresholds = rules.domain(self.name).thresholds
        self._push_levels = levels_of(thresholds.get("push_3h", ()))
        self._sms_levels = levels_of(thresholds.get("sms_48h", ()))

    def made(self, user_id: str, rules: int, values: Values) -> Recipient:
        """A record of which nothing is known but this."""
        return Recipient(user_id, rules, values)

    def take(self, user: Recipient, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        clock_ms, pushed, texted = user.clock_ms, user.pushed, user.texted
        if pushed.oldest_ms <= clock_ms - _PUSH_3H.span_ms or pushed.spent:
            _PUSH_3H.clear(pushed, clock_ms, user.user_id, self.blocks)
        if texted.oldest_ms <= clock_ms - _SMS_48H.span_ms or texted.spent:
            _SMS_48H.clear(texted, clock_ms, user.user_id, self.blocks)
        if isinstance(event, Reach):
            channel, entry = event.channel, self.entry(user, day)
            user.add(entry, REACHES, 1)
            user.unanswered += 1
            if channel == "app_push":
                user.add(entry, PUSHES, 1)
                _PUSH_3H.add(pushed, event.ts, clock_ms, user.user_id, self.blocks)
            elif channel == "sms":
                user.add(entry, TEXTS, 1)
                _SMS_48H.add(texted, event.ts, clock_ms, user.user_id, self.blocks)
            out.figures.append(("reaches", channel, 1))
        elif isinstance(event, Response):
            user.add(self.entry(user, day), RESPONSES, 1)
            user.unanswered = 0
            out.figures.append(("responses", event.channel, 1))
        elif isinstance(event, Unsubscribe | Subscribe):
            channel = event.channel
            if channel not in user.opted_out or event.ts >= user.opted_out[channel][0]:
                user.opted_out[channel] = (event.ts, isinstance(event, Unsubscribe))

    def instant_ms(self, user: Recipient) -> int:
        """When a window of hours next falls to a number that a tag compares it with."""
        pushed, texted = user.pushed, user.texted
        due_ms = _PUSH_3H.due_ms(pushed, self._push_levels) if pushed.head else NEVER
        if texted.head:
            due_ms = min(due_ms, _SMS_48H.due_ms(texted, self._sms_levels))
        return due_ms

    def strike(self, user: Recipient, due_ms: int, out: Outputs) -> bool:
        """Have the windows ready; to be written where a row was read, or it would be again."""
        is_read = False
        for hours, held in ((_PUSH_3H, user.pushed), (_SMS_48H, user.texted)):
            if held.head:
                is_read |= hours.settle(held, user.clock_ms, user.user_id, self.blocks)
        return is_read

    def last_instant_ms(self, user: Recipient, time_ms: int) -> int:
        """When a reach last left its window of hours."""
        return max(
            hours.last_left_ms(held, user.clock_ms, time_ms)
            for hours, held in ((_PUSH_3H, user.pushed), (_SMS_48H, user.texted))
        )

    def forget(self, user: Recipient, out: Outputs) -> None:
        """Drop the rows."""
        _PUSH_3H.forget(user.pushed, user.user_id, self.blocks)
        _SMS_48H.forget(user.texted, user.user_id, self.blocks)
