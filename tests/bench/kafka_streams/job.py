"""Runs `HighRepurchase.java`: one tag in Kafka Streams, over a source that is already filled.

It needs a JDK and Maven, which fetches Kafka Streams once.
"""

import shutil
import subprocess
import time
from pathlib import Path

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.bench import rig
from tests.broker.cluster import ends_with_us, fetch
from tests.broker.harness import Service
from tests.broker.worker import cpu_seconds, wait_until

HERE = Path(__file__).parent

TAG = "high_repurchase"  # what the job makes of purchases


def missing() -> str | None:
    """What this machine lacks to run it; None where it lacks nothing."""
    lacks = [f"no `{name}`" for name in ("javac", "mvn") if not shutil.which(name)]
    return " and ".join(lacks) or None


def run(service: Service) -> rig.Pace:
    """Work off the source of ``service``, from its running until all is committed.

    The CPU seconds are those of the whole process, its start included.
    """
    prefix = service.settings["TAGSTREAM_TOPIC_PREFIX"]
    application, changes = f"{prefix}streams", f"{prefix}streams-changes"
    partitions = len(service.source.partitions)
    admin = AdminClient(service.client)
    admin.create_topics([NewTopic(changes, partitions)])[changes].result()
    directory = Path(service.directory, "streams")
    jars = fetch(HERE / "pom.xml")
    subprocess.run(
        ["javac", "-cp", f"{jars}/*", "-d", directory, HERE / "HighRepurchase.java"], check=True
    )
    command = [
        *("java", "-Xmx1g", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
        *("-cp", f"{directory}:{jars}/*", "HighRepurchase"),
        *(str(service.client["bootstrap.servers"]), application, service.source.name, changes),
        str(directory / "state"),
    ]
    events = sum(service.source.ends())
    consumer = Consumer({**service.client, "group.id": application})
    sources = [TopicPartition(service.source.name, number) for number in range(partitions)]
    log = directory / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ends_with_us(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: "running" in log.read_text(), "Kafka Streams to run", rig.LIMIT_S)
        began = time.monotonic()
        wait_until(
            lambda: committed(consumer, sources) >= events, "all events in Streams", rig.LIMIT_S
        )
        return rig.Pace(events, time.monotonic() - began, cpu_seconds(process.pid))
    finally:
        process.kill()
        process.wait()
        consumer.close()


def committed(consumer: Consumer, sources: list[TopicPartition]) -> int:
    """Events of the source that are in committed transactions; looks ten times a second."""
    time.sleep(0.1)
    return sum(max(0, place.offset) for place in consumer.committed(sources, timeout=30))
