"""How much of Prometheus one worker takes, at most: all partitions on one, all that can happen."""

from collections import Counter
from pathlib import Path
from random import Random

import orjson
from prometheus_client.parser import text_string_to_metric_families

from stream import data
from stream.app import Tagstream
from stream.domains import discover
from stream.lines import Router
from stream.partitioner import partition_for
from stream.rules import load
from stream.settings import Settings
from tests.observability.load import Shop

MOST = 1_000
NOW_MS = 1_764_000_000_000


async def test_a_worker_has_fewer_than_a_thousand_series(tmp_path: Path) -> None:
    """Every domain and the shipped tags, after a hundred days of everything that can happen."""
    domains = discover()
    options = {"time": "events", "data_dir": str(tmp_path), "web_port": "0"}
    settings = Settings.load(options, {})
    service = Tagstream(settings, load(data.TAGS, domains), domains)
    router = Router(domains)
    await service.start()
    await service.until_ready()
    rows: dict[tuple[str, int], list[tuple[bytes, bytes]]] = {}
    for event in Shop(domains, Random(5)).history(NOW_MS):
        raw, key = orjson.dumps(event), event["user_id"].encode()
        number = partition_for(key, settings.partitions, settings.partitioner)
        for domain in router.route(raw).domains:
            rows.setdefault((domain, number), []).append((key, raw))
    service.broker.append_many(rows)
    await service.drained()
    await service.advance(NOW_MS)
    series = Counter(
        {
            family.name: len(family.samples)
            for family in text_string_to_metric_families(service.metrics.text().decode())
        }
    )
    await service.stop()
    assert series["tagstream_partition_lag"] in (0, settings.partitions * len(domains))
    assert series.total() < MOST, series.most_common(12)
