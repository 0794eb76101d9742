"""The events that arrive: what those of all domains share, and one module for each domain's own.

Domains declare theirs as subclasses, tagged by ``type``.

Decoding checks types, lengths and ranges; ``check`` settles what a type cannot say.
"""

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, Struct

Id = Annotated[str, Meta(min_length=1, max_length=128)]

if TYPE_CHECKING:
    Instant = int
else:
    Instant = int | str  # RFC 3339 is read by whoever decodes, before anything here sees it


class Event(Struct, tag_field="type", kw_only=True, gc=False):
    """One thing that happened to one user; ``ts`` in epoch milliseconds.

    ``is_activity``: the user did it, and was active that day; ``is_registration``: and began to be
    a user. A field that may be left out has the default ``UNSET``, so that it shows.
    """

    is_activity: ClassVar[bool] = True
    is_registration: ClassVar[bool] = False

    event_id: Id
    user_id: Id
    ts: Instant

    def check(self) -> None:
        """Finish decoding, once; raises ValueError ``field: reason``."""


class Erase(Event, tag="erase"):
    """The user's right to be forgotten: everything up to ``ts`` goes."""

    is_activity: ClassVar[bool] = False
