"""Users and definitions as people and services read them: JSON-ready, by name."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from stream.domains import Domain


def local_iso(ts_ms: int, zone: ZoneInfo) -> str:
    """An instant in local time with milliseconds, as all outputs write it."""
    return datetime.fromtimestamp(ts_ms / 1000, zone).isoformat(timespec="milliseconds")


def describe_user(
    profile: Any | None, records: Mapping[str, Any], domains: Mapping[str, Domain], rules: Any
) -> dict[str, Any] | None:
    """Current tags with ``since``, and every feature by domain; None where nothing is known.

    ``profile`` and ``records``, decoded records by domain, are the user's. Infinity becomes null.
    """
    if profile is None:
        return None
    zone = ZoneInfo(rules.timezone)
    features: dict[str, dict[str, Any]] = {}
    for name, user in records.items():
        domain = domains[name]
        readers = dict(domain.features)
        if domain.attribute_reader is not None:
            readers |= {key: domain.attribute_reader(key) for key in rules.attributes}
        features[name] = {
            key: None if (value := read(user)) == math.inf else value
            for key, read in readers.items()
        }
    return {
        "user_id": profile.user_id,
        "tags": {
            name: {"value": held.value, "since": local_iso(held.since_ms, zone)}
            for name, held in profile.tags.items()
        },
        "features": features,
    }


def describe_tag(definition: Any) -> dict[str, Any]:
    """A definition as `GET /tags` gives it."""
    return {
        "name": definition.name,
        "title": definition.title,
        "titles": dict(definition.titles),
        "domain": definition.domain,
        "owner": definition.owner,
        "description": definition.description,
        "values": list(definition.values),
        "features": list(definition.features),
        "control": definition.control,
    }
