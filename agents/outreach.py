"""Outreach: reaches, responses, and channels that users leave."""

from collections.abc import Callable
from typing import Any

from stream.chunks import events
from stream.domains import Domain
from tables import outreach


def attach(app: Any, topic: Any, apply: Callable[[Any], None]) -> None:
    """Hand every chunk of outreach to the partition that owns it."""

    @app.agent(topic, name="outreach")
    async def apply_outreach(stream: Any) -> None:
        async for chunk in events(stream):
            apply(chunk)


domain = Domain(
    name="outreach",
    code=b"o",
    events=outreach.Event,
    features=outreach.features.readers,
    attribute_reader=None,
    table=outreach.Outreach,
    attach=attach,
)
