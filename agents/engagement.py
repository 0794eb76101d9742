"""Engagement: watching, reviews, favourites, shares, views, searches and carts."""

from collections.abc import Callable
from typing import Any

from stream.chunks import events
from stream.domains import Domain
from tables import engagement


def attach(app: Any, topic: Any, apply: Callable[[Any], None]) -> None:
    """Hand every chunk of engagement to the partition that owns it."""

    @app.agent(topic, name="engagement")
    async def apply_engagement(stream: Any) -> None:
        async for chunk in events(stream):
            apply(chunk)


domain = Domain(
    name="engagement",
    code=b"e",
    events=engagement.Event,
    features=engagement.features.readers,
    attribute_reader=None,
    table=engagement.Engagement,
    attach=attach,
)
