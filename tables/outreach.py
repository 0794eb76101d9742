"""Outreach: what a user was sent on which channel, what he answered, and what he does not want.

Windows: hours slide, ``(clock - span, clock]``; days are whole local days, the clock's own
included; the month is the local calendar month of the clock. Late events: counted in their own
place. Source: topic ``outreach``.

An instant at which an hour window changes is a deadline only where a tag could change with it.
"""

from collections.abc import Callable
from typing import ClassVar, Final, Literal, get_args

from msgspec import field

from tables.calendar import HOUR_MS
from tables.days import DayCounts, DayTable, add, month_sum_of, ratio_of, sum_of
from tables.event import Erase
from tables.event import Event as AnyEvent
from tables.features import Features, Month, Rate, Window, levels_of
from tables.hours import Held, Hours
from tables.table import NEVER, Outputs, Rules

Channel = Literal["app_push", "sms", "email", "wechat", "wechat_mini", "store", "phone"]
CHANNELS: Final[tuple[Channel, ...]] = get_args(Channel)


class _Channelled(AnyEvent):
    channel: Channel


class Reach(_Channelled, tag="reach"):
    """The user was sent something."""

    is_activity: ClassVar[bool] = False


class Response(_Channelled, tag="response"):
    """The user answered, or followed what he was sent."""


class Unsubscribe(_Channelled, tag="unsubscribe"):
    """The user wants nothing more on the channel."""


class Subscribe(_Channelled, tag="subscribe"):
    """The user wants the channel after all."""


Event = Reach | Response | Unsubscribe | Subscribe | Erase


class Recipient(DayCounts):
    """A user in the domain outreach. ``opted_out`` has the channels that he ever spoke of: when
    he last did, and whether that was to leave.
    """

    reaches: list[int] = field(default_factory=lambda: [0])
    responses: list[int] = field(default_factory=lambda: [0])
    pushes: list[int] = field(default_factory=lambda: [0])
    texts: list[int] = field(default_factory=lambda: [0])
    pushed: Held = field(default_factory=Held)
    texted: Held = field(default_factory=Held)
    unanswered: int = 0
    opted_out: dict[Channel, tuple[int, bool]] = {}


_PUSH_3H: Final = Hours(3 * HOUR_MS, first_row=1 << 30)
_SMS_48H: Final = Hours(48 * HOUR_MS, first_row=1 << 31)

features: Final = Features()

# App pushes of the local day of the clock, SMS of its month; of any channel, the last 30 days.
features.add(Window(1, "pushes"))(sum_of("push_day", 1, "pushes"))
features.add(Month("texts"))(month_sum_of("sms_month", "texts"))
features.add(Window(30, "reaches"))(sum_of("reaches_30d", 30, "reaches"))
features.add(Window(30, "responses"))(sum_of("responses_30d", 30, "responses"))
features.add(Rate(30, "responses", "reaches"))(
    ratio_of("response_rate_30d", 30, "responses", "reaches")
)


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

    read.__name__ = f"opted_out_{channel}"
    return read


for _channel in CHANNELS:
    features.add()(_opted_out(_channel))


class Outreach(DayTable[Recipient]):
    """The logic of the domain outreach."""

    name = "outreach"
    features = features
    record = Recipient
    columns = ("reaches", "responses", "pushes", "texts")

    def __init__(self, rules: Rules) -> None:
        super().__init__(rules)
        thresholds = rules.domain(self.name).thresholds
        self._push_levels = levels_of(thresholds.get("push_3h", ()))
        self._sms_levels = levels_of(thresholds.get("sms_48h", ()))

    def take(self, user: Recipient, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply an event to the record."""
        clock_ms, pushed, texted = user.clock_ms, user.pushed, user.texted
        if pushed.oldest_ms <= clock_ms - _PUSH_3H.span_ms or pushed.spent:
            _PUSH_3H.clear(pushed, clock_ms, user.user_id, self.blocks)
        if texted.oldest_ms <= clock_ms - _SMS_48H.span_ms or texted.spent:
            _SMS_48H.clear(texted, clock_ms, user.user_id, self.blocks)
        if isinstance(event, Reach):
            channel, entry = event.channel, self.entry(user, day)
            add(user.reaches, entry, 1)
            user.unanswered += 1
            if channel == "app_push":
                add(user.pushes, entry, 1)
                _PUSH_3H.add(pushed, event.ts, clock_ms, user.user_id, self.blocks)
            elif channel == "sms":
                add(user.texts, entry, 1)
                _SMS_48H.add(texted, event.ts, clock_ms, user.user_id, self.blocks)
            out.figures.append(("reaches", channel, 1))
        elif isinstance(event, Response):
            add(user.responses, self.entry(user, day), 1)
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
