"""Service: how often a user turned to customer service, and what for.

Windows: whole local days, the clock's own included, and the local calendar month of the clock.
Late events: counted on their own day. Source: topic ``service``.
"""

from typing import Any, Final

from mypy_extensions import mypyc_attr

from tables.days import DayTable, month_sum_of, sum_of
from tables.events import Event as AnyEvent
from tables.events.service import Contact, Event
from tables.features import Features, Month, Window
from tables.record import DayCounts, Values
from tables.table import Outputs

__all__ = ["Caller", "Event", "Service", "features"]

CONTACTS: Final = 1
CONSULTS: Final = 2
COMPLAINTS: Final = 3
COLUMNS: Final = 3


@mypyc_attr(acyclic=True)
class Caller(DayCounts):
    """A user in the domain service."""

    def __init__(self, user_id: str, rules: int, values: Values) -> None:
        super().__init__(user_id, rules, values, COLUMNS)


features: Final = Features()

# Contacts of the month and of the last 30 local days. Source: ``contact``.
features.add(Month(CONTACTS), "contacts_month")(month_sum_of(CONTACTS))
features.add(Month(CONSULTS), "consults_month")(month_sum_of(CONSULTS))
features.add(Window(30, CONTACTS), "contacts_30d")(sum_of(30, CONTACTS))
features.add(Window(30, COMPLAINTS), "complaints_30d")(sum_of(30, COMPLAINTS))

_OF_KIND: Final[dict[Any, int]] = {"consult": CONSULTS, "complaint": COMPLAINTS}


class Service(DayTable[Caller]):
    """The logic of the domain service."""

    name = "service"
    features = features

    def made(self, user_id: str, rules: int, values: Values) -> Caller:
        """A record of which nothing is known but this."""
        return Caller(user_id, rules, values)

    def take(self, user: Caller, event: AnyEvent, day: int, out: Outputs) -> None:
        """Apply a contact to the record."""
        if isinstance(event, Contact):
            entry = self.entry(user, day)
            user.add(entry, CONTACTS, 1)
            if column := _OF_KIND.get(event.kind):
                user.add(entry, column, 1)
