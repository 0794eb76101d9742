"""Outreach: the events that arrive."""

from typing import ClassVar, Final, Literal, get_args

from tables.events import Erase
from tables.events import Event as AnyEvent

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
