"""The whole service inside the test's own process, on an embedded broker, moved by events alone."""

from pathlib import Path
from typing import Any, Self

import orjson
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stream import rules
from stream.app import Tagstream
from stream.commands.feeding import EmbeddedFeed
from stream.domains import discover
from stream.lines import Router
from stream.settings import Settings


class InProcess:
    """The service with one partition; ``definitions`` are a file's text, or its content."""

    def __init__(self, directory: Path, definitions: str | dict[str, Any]) -> None:
        domains = discover()
        options = {"partitions": "1", "time": "events", "data_dir": str(directory)}
        text = definitions if isinstance(definitions, str) else yaml.safe_dump(definitions)
        self.settings = Settings.load(options, {})
        self.rules = rules.parse(text, "tags.yaml", domains)
        self.service = Tagstream(self.settings, self.rules, domains)
        self._router = Router(domains)
        self._sent = 0

    async def __aenter__(self) -> Self:
        await self.service.start(web=False)
        await self.service.until_ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.service.stop()

    async def send(self, *events: str) -> None:
        """Events, each ``user type time`` in Shanghai to the minute, and further JSON fields."""
        lines = []
        for event in events:
            user, kind, at, *fields = event.split(maxsplit=3)
            self._sent += 1
            content = {
                "event_id": f"e{self._sent}",
                "user_id": user,
                "type": kind,
                "ts": f"{at}:00+08:00",
            } | (orjson.loads(fields[0]) if fields else {})
            lines.append(orjson.dumps(content))
        feed = EmbeddedFeed(self.settings, self.service.broker)
        await feed.send(list(self._router.items(lines)))
        await self.service.drained()

    def counted(self, name: str) -> dict[str, float]:
        """The samples of a metric that are not 0, by their label values in order of label."""
        return {
            " ".join(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.service.metrics.text().decode())
            for sample in family.samples
            if sample.name == name and sample.value
        }

    def rows(self, topic: str) -> list[tuple[bytes | None, Any]]:
        """Keys and decoded values of everything on a topic."""
        return [
            (record.key, record.value and orjson.loads(record.value))
            for record in self.service.broker.read(topic, 0, 0, max_records=100_000)
        ]
