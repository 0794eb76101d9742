"""Service: contacts with customer service."""

from collections.abc import Callable
from typing import Any

from stream.chunks import events
from stream.domains import Domain
from tables import service


def attach(app: Any, topic: Any, apply: Callable[[Any], None]) -> None:
    """Hand every chunk of contacts to the partition that owns it."""

    @app.agent(topic, name="service")
    async def apply_service(stream: Any) -> None:
        async for chunk in events(stream):
            apply(chunk)


domain = Domain(
    name="service",
    code=b"s",
    events=service.Event,
    features=service.features.readers,
    attribute_reader=None,
    table=service.Service,
    attach=attach,
)
