"""One user alone with a table: tests tell what happened when, in local time."""

from datetime import datetime
from functools import cache
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import yaml

from stream import rules
from stream.domains import discover
from tables.table import NEVER, Outputs, Table

_parsed = cache(lambda text: rules.parse(text, "tags.yaml", discover()))
_decoders = {name: msgspec.json.Decoder(found.events) for name, found in discover().items()}


def received(event: dict[str, Any], domain: str = "purchases") -> Any:
    """An event as it comes out of decoding."""
    decoded = _decoders[domain].decode(msgspec.json.encode(event))
    decoded.check()
    return decoded


def definitions(*tags: dict[str, Any] | str, domain: str = "purchases", **content: Any) -> Any:
    """Rules of these tags; a string is the condition of a tag ``t``."""
    listed = [{"name": "t", "when": tag} if isinstance(tag, str) else tag for tag in tags]
    return _parsed(
        yaml.safe_dump(
            {
                "version": 1,
                "timezone": "Asia/Shanghai",
                "attributes": ["region", "age"],
                "tags": [{"domain": domain} | tag for tag in listed],
            }
            | content,
            sort_keys=False,
        )
    )


class Solo:
    """The user, the table of one domain, and all that came out."""

    def __init__(
        self, *tags: dict[str, Any] | str, domain: str = "purchases", **content: Any
    ) -> None:
        self.domain = discover()[domain]
        self.rules = definitions(*tags, domain=domain, **content)
        self.table: Table[Any] = self.domain.table(self.rules)
        self.user = self.table.new("u1")
        self.out = Outputs()
        self._ids = count(1)

    def ms(self, at: str) -> int:
        """Epoch milliseconds of a local time, as ``2025-04-30 10:00``."""
        local = datetime.fromisoformat(at).replace(tzinfo=ZoneInfo(self.rules.timezone))
        return round(local.timestamp() * 1000)

    def tell(
        self, at: str, kind: str = "order", /, *, time: str | None = None, **fields: Any
    ) -> str:
        """An event; ``time`` is how far the partition's time has come. What became of it."""
        event = {"event_id": f"e{next(self._ids)}", "user_id": "u1", "type": kind} | fields
        if kind in ("order", "refund"):
            event.setdefault("amount", 10)
        event["ts"] = self.ms(at)
        time_ms = self.ms(time) if time else -NEVER
        return self.table.apply(self.user, received(event, self.domain.name), time_ms, self.out)

    def wait(self, until: str) -> bool:
        """Time passes; whether the record has to be written."""
        return self.table.fire(self.user, self.ms(until), self.out)

    def says(self, feature: str) -> Any:
        """A feature, as of the user's clock."""
        return self.domain.features[feature](self.user)

    @property
    def deadline(self) -> str | None:
        """The next deadline in local time, to the second; None if there is none."""
        due_ms = self.table.deadline_ms(self.user)
        return None if due_ms == NEVER else self.table.calendar.iso(due_ms)[:19]

    @property
    def clock(self) -> str:
        """The user's clock in local time, to the second."""
        return self.table.calendar.iso(self.user.clock_ms)[:19]

    @property
    def changes(self) -> list[tuple[Any, str, str]]:
        """Value, when to the second, and kind of cause of every change."""
        return [
            (change["value"], change["effective_at"][:19], change["cause"]["kind"])
            for change in self.out.changes
        ]

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Status and time, to the second, of every warning record."""
        return [(warning["status"], warning["at"][:19]) for warning in self.out.warnings]
