"""Service: the events that arrive."""

from typing import Literal

from msgspec import UNSET, UnsetType

from tables.events import Erase
from tables.events import Event as AnyEvent

Kind = Literal["consult", "complaint", "other"]


class Contact(AnyEvent, tag="contact"):
    """The user turned to customer service; ``other`` where the kind is not told."""

    channel: str | UnsetType = UNSET
    kind: Kind | UnsetType = UNSET


Event = Contact | Erase
