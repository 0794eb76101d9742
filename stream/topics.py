"""The topics: which there are, how each has to be set up, and what is wrong with those found.

Every topic has the same number of partitions, because partition p of all of them has one
owner. Sources and outputs keep every record for a while; ``user-tags`` and the changelog
keep the last of each key for ever, and markers of deletion long enough that a disk which was
away can still learn of them.

Pure: no broker in this file (`stream/commands/topics.py` asks one).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stream.settings import Settings

CHANGELOG = "tagstream-state-changelog"
USER_TAGS = "user-tags"
DEAD_LETTERS = "dead-letters"
DAY_MS = 86_400_000

#: What outputs and changelog are created with; where it says less, records would be lost.
OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "tag-changes": {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS)},
    "churn-warnings": {"cleanup.policy": "delete", "retention.ms": str(90 * DAY_MS)},
    DEAD_LETTERS: {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS)},
    USER_TAGS: {"cleanup.policy": "compact", "delete.retention.ms": str(7 * DAY_MS)},
    CHANGELOG: {"cleanup.policy": "compact", "delete.retention.ms": str(7 * DAY_MS)},
}
#: How long sources keep records is their producers' and operators' to say. Append time is what
#: latency is measured from, and what keeps history that is loaded from expiring at once.
SOURCE: Mapping[str, str] = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as it has to be, or as it was found."""

    name: str
    partitions: int
    configs: Mapping[str, str] = field(default_factory=dict)


class Weight(Enum):
    """What a problem is to whom."""

    LOSS = "a worker refuses to start: state or input would be lost"
    READERS = "state is safe, but readers may miss records, or disks have to be rebuilt sooner"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a topic, with the remedy, on one line."""

    weight: Weight
    topic: str
    text: str


def wanted(settings: Settings, domains: Iterable[str]) -> list[Topic]:
    """Every topic of a build that knows ``domains``, sources first."""
    configs = dict.fromkeys(domains, SOURCE) | dict(OUTPUTS)
    return [Topic(settings.topic(name), settings.partitions, configs[name]) for name in configs]


def missing(want: Iterable[Topic], found: Mapping[str, Topic]) -> list[Topic]:
    """Those that are to be created."""
    return [topic for topic in want if topic.name not in found]


def problems(want: Iterable[Topic], found: Mapping[str, Topic]) -> list[Problem]:
    """What is wrong with the topics that a broker has, in the order of ``want``."""
    listed: list[Problem] = []
    for topic in want:
        actual = found.get(topic.name)
        if actual is None:
            text = f"{topic.name} is missing: run 'tagstream topics'"
            listed.append(Problem(Weight.LOSS, topic.name, text))
        else:
            listed.extend(_problems_of(topic, actual))
    return listed


def tombstones_ms(changelog: Topic | None) -> int:
    """How long a changelog keeps markers of deletion: Kafka's own default where it is not said."""
    configs = changelog.configs if changelog else {}
    return int(configs.get("delete.retention.ms", DAY_MS))


def _problems_of(topic: Topic, actual: Topic) -> Iterable[Problem]:
    name = topic.name
    if actual.partitions != topic.partitions:
        yield Problem(
            Weight.LOSS,
            name,
            f"{name} has {actual.partitions} partitions, TAGSTREAM_PARTITIONS is"
            f" {topic.partitions}: set it to what all topics have; where they differ, make new"
            " topics (another TAGSTREAM_TOPIC_PREFIX) and feed them again, never add partitions",
        )
    policy = topic.configs["cleanup.policy"]
    found_policy = actual.configs.get("cleanup.policy", "delete")
    if found_policy.replace(" ", "") != policy:
        yield Problem(
            Weight.LOSS,
            name,
            f"{name} has cleanup.policy={found_policy}, it has to be {policy}:"
            f" {_alter(name, 'cleanup.policy', policy)}",
        )
    for config in ("delete.retention.ms", "retention.ms"):
        least = topic.configs.get(config)
        held = actual.configs.get(config)
        if least is None or held is None or int(held) < 0 or int(held) >= int(least):
            continue
        yield Problem(
            Weight.READERS,
            name,
            f"{name} has {config}={held}, less than {int(least) // DAY_MS} days:"
            f" {_alter(name, config, least)}",
        )


def _alter(name: str, config: str, value: str) -> str:
    return (
        f"kafka-configs.sh --bootstrap-server … --alter --topic {name}"
        f" --add-config {config}={value}"
    )
