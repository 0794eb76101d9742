"""Service: how often a user turned to customer service, and what for.

Windows: whole local days, the clock's own included, and the local calendar month of the clock.
Late events: counted on their own day. Source: topic ``service``.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, Literal

from msgspec import UNSET, UnsetType, field

from tables.days import DayCounts, DayTable, add, month_sum_of, sum_of
from tables.event import Erase
from tables.event import Event as AnyEvent
from tables.features import Features, Month, Window
from tables.table import Outputs

Kind = Literal["consult", "complaint", "other"]


class Contact(AnyEvent, tag="contact"):
    """The user turned to customer service; ``other`` where the kind is not told."""

    channel: str | UnsetType = UNSET
    kind: Kind | UnsetType = UNSET


Event = Contact | Erase


class Caller(DayCounts):
    """A user in the domain service."""

    contacts: list[int] = field(default_factory=lambda: [0])
    consults: list[int] = field(default_factory=lambda: [0])
    complaints: list[int] = field(default_factory=lambda: [0])


features: Final = Features()

# Contacts of the month and of the last 30 local days. Source: ``contact``.
features.add(Month("contacts"))(month_sum_of("contacts_month", "contacts"))
features.add(Month("consults"))(month_sum_of("consults_month", "consults"))
features.add(Window(30, "contacts"))(sum_of("contacts_30d", 30, "contacts"))
features.add(Window(30, "complaints"))(sum_of("complaints_30d", 30, "complaints"))

_OF_KIND: Final[dict[Any, Callable[[Caller], list[int]]]] = {
    "consult": attrgetter("consults"),
    "complaint": attrgetter("complaints"),
}


class Service(DayTable[Caller]):
    """The logic of the domain service."""

    name = "service"
    features = features
    record = Caller
    columns = ("contacts", "consults", "complaints")

    def take(self, user: Caller, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply a contact to the record."""
        if isinstance(event, Contact):
            entry = self.entry(user, day)
            add(user.contacts, entry, 1)
            if column := _OF_KIND.get(event.kind):
                add(column(user), entry, 1)
