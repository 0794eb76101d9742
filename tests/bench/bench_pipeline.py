"""How fast one worker runs purchases on a real Kafka, beside Kafka Streams and Faust.

On one broker, which has warmed up. The worker with the shipped tags and churn warnings, by itself
and as a process on each core; with one of those tags alone; where there are a JDK and Maven, that
tag in Kafka Streams (`kafka_streams/`). Then all of them in the common Faust way
(`common_faust.py`), over a twentieth of the events and of the users and for two minutes at most,
since it would take all night: each of its users lives through the same, more of them fit its
caches, and what users have behind them, which slows it down, is less.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import yaml
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from stream.data import TAGS
from tests.bench import rig
from tests.bench.kafka_streams import job
from tests.broker.cluster import ends_with_us, free_port
from tests.broker.harness import Service
from tests.broker.purchases import Sent
from tests.broker.worker import ROOT, cpu_seconds, environment, wait_until

WARM, SCALE = 5, 20  # parts of the events, and of the users
COMMON_S = 120.0  # the common way is stopped after this


def main() -> None:
    options = rig.arguments(__doc__, events=1_000_000, users=50_000, days=30, partitions=4)
    events, users, days = options.events, options.users, options.days
    rows: list[tuple[str, ...]] = []

    def report(*row: str) -> None:
        rows.append(row)
        rig.progress(": ".join((row[0], ", ".join(row[1:]))))

    with rig.broker() as cluster:

        def deployed(
            prefix: str, *, tags: str | None = None, processes: int = 1
        ) -> AbstractContextManager[Service]:
            return rig.deployed(
                partitions=options.partitions,
                tags=tags,
                settings={"TAGSTREAM_PROCESSES": str(processes)},
                cluster=cluster,
                prefix=prefix,
            )

        with deployed("warm-") as service:  # Java compiles what it runs often
            service.send(rig.orders(events // WARM, users // WARM, days=days))
            rig.work_off(service)
        cores = min(os.cpu_count() or 1, options.partitions)
        if cores > 1:
            with deployed("cores-", processes=cores) as service:
                service.send(rig.orders(events, users, days=days))
                pace = rig.work_off(service)
            report(f"tagstream, everything, {cores} processes", *pace.cells)
        with deployed("one-", tags=one_tag()) as service:
            service.send(rig.orders(events, users, days=days))
            pace = rig.work_off(service)
        report("tagstream, one tag", *pace.cells)
        with deployed("bench-") as service:
            service.send(rig.orders(events, users, days=days))
            ours = rig.work_off(service)
            service.workers["worker"].stop()
            report("tagstream, everything", *ours.cells)
            if lacks := job.missing():
                report(f"Kafka Streams: {lacks}", "-", "-", "-")
            else:
                report("Kafka Streams, one tag", *job.run(service).cells)
            common = common_way(service, rig.orders(events // SCALE, users // SCALE, days=days))
            report("common Faust way", *common.cells)
    rig.show(
        f"purchases: {ours.per_s / common.per_s:.1f} times the common Faust way",
        ["", *rig.Pace.COLUMNS],
        rows,
    )


def one_tag() -> str:
    """The shipped definitions with the one tag that Kafka Streams is given, churn included."""
    definitions = yaml.safe_load(TAGS.read_text("utf-8"))
    definitions["tags"] = [tag for tag in definitions["tags"] if tag["name"] == job.TAG]
    del definitions["breakdown"]  # a tag that is not there any more
    text: str = yaml.safe_dump(definitions)
    return text


def common_way(service: Service, events: Iterable[Sent]) -> rig.Pace:
    """Run `common_faust.py` over ``events`` on the broker of ``service``, to their end or for
    ``COMMON_S``.

    Its clock starts at the first event that it has done.
    """
    prefix = service.settings["TAGSTREAM_TOPIC_PREFIX"] + "common-"
    partitions = len(service.source.partitions)
    admin = AdminClient(service.client)
    topics = [
        NewTopic(prefix + name, partitions)
        for name in ("purchases", "tag-changes", "user-tags", "warnings")
    ]
    for made in admin.create_topics(topics).values():
        made.result()
    count = service.send(events, topic=prefix + "purchases")
    directory, port = Path(service.directory, "common"), free_port()
    directory.mkdir()
    settings = {
        "BROKER": service.settings["TAGSTREAM_BROKER"],
        "PREFIX": prefix,
        "PARTITIONS": str(partitions),
        "DATA_DIR": str(directory),
    }
    with Path(directory, "log").open("wb") as log:
        process = subprocess.Popen(
            ends_with_us(
                [sys.executable, "-m", "tests.bench.common_faust", "worker", f"--web-port={port}"]
            ),
            cwd=ROOT,
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: done(port), "the first event through common_faust", rig.LIMIT_S)
        began = time.monotonic()
        finished = 0
        while finished < count and time.monotonic() < began + COMMON_S:
            finished = done(port)
        # Faust restarts an agent that crashed, at the event after: that would count as work.
        if b"Crashed reason" in (said := Path(directory, "log").read_bytes()):
            raise RuntimeError(f"common_faust crashed:\n{said[-2_000:].decode()}")
        return rig.Pace(finished, time.monotonic() - began, cpu_seconds(process.pid))
    finally:
        process.kill()
        process.wait()


def done(port: int) -> int:
    """How many events `common_faust.py` has done; 0 while it does not answer yet.

    Looks ten times a second.
    """
    time.sleep(0.1)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/done/", timeout=10) as answer:
            return int(json.load(answer)["done"])
    except (urllib.error.URLError, TimeoutError):
        return 0


if __name__ == "__main__":
    main()
