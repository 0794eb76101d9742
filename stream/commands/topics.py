"""``tagstream topics``: create the topics on a Kafka broker, or check those it has."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from stream.commands.feeding import BrokerError, connected, need_kafka
from stream.commands.options import BROKER, takes
from stream.domains import discover
from stream.errors import TopicError
from stream.settings import Settings
from stream.topics import Problem, Topic, Weight, missing, problems, wanted

MOST_REPLICAS = 3


@takes(*BROKER, "replication")
def topics(
    settings: Settings,
    check: Annotated[
        bool, typer.Option("--check", metavar="", help="Create nothing, only say what is wrong.")
    ] = False,
) -> None:
    """Create the topics on the Kafka broker, or check them: partitions, compaction, retention.

    Those that exist are never changed. Every problem is one line with its remedy; exit 1 where
    there is one.
    """
    need_kafka(settings, "topics")
    want = wanted(settings, discover())
    made, found = asyncio.run(_look(settings, want) if check else _create(settings, want))
    wrong = problems(want, found)
    for topic in want:
        if (actual := found.get(topic.name)) is not None:
            typer.echo(f"{_status(topic.name, made, wrong)}  {_described(actual)}")
    if wrong:
        raise TopicError("\n".join(problem.text for problem in wrong))


def refuse_loss(settings: Settings) -> dict[str, Topic]:
    """The topics as the broker has them; TopicError where they would lose state or input."""
    want = wanted(settings, discover())
    _, found = asyncio.run(_look(settings, want))
    lines = [item.text for item in problems(want, found) if item.weight is Weight.LOSS]
    if lines:
        raise TopicError("\n".join(lines))
    return found


Looked = tuple[list[str], dict[str, Topic]]  # the names that were made; every topic of ours


async def _look(settings: Settings, want: Iterable[Topic]) -> Looked:
    admin = AIOKafkaAdminClient(**settings.client_options())
    async with connected(settings, admin):
        return [], await _found(admin, want)


async def _create(settings: Settings, want: list[Topic]) -> Looked:
    admin = AIOKafkaAdminClient(**settings.client_options())
    async with connected(settings, admin):
        new = missing(want, await _found(admin, want))
        if new:
            brokers = len((await admin.describe_cluster())["brokers"])
            replicas = settings.replication or min(MOST_REPLICAS, brokers)
            answer = await admin.create_topics(
                [
                    NewTopic(topic.name, topic.partitions, replicas, topic_configs=topic.configs)
                    for topic in new
                ]
            )
            for name, code, *message in answer.topic_errors:
                error = for_code(code)
                # Somebody else was quicker: what he made is checked like any other.
                if code and error is not TopicAlreadyExistsError:
                    said = next(iter(message), None) or error.description
                    raise TopicError(f"{name} cannot be created: {said}")
        found = await _found(admin, want)
        while missing(new, found):  # other brokers learn of them a moment later
            await asyncio.sleep(0.1)
            found = await _found(admin, want)
        return [topic.name for topic in new], found


async def _found(admin: Any, want: Iterable[Topic]) -> dict[str, Topic]:
    """Our topics as the broker has them."""
    names = {topic.name for topic in want}
    try:
        # All topics: a broker may create those that are asked for by name.
        described = [item for item in await admin.describe_topics() if item["topic"] in names]
        if not described:
            return {}
        answers = await admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, item["topic"]) for item in described]
        )
    except KafkaError as error:
        raise BrokerError(f"the broker does not say which topics it has: {error}") from error
    configs: dict[str, Mapping[str, str]] = {}
    for answer in answers:
        for code, message, _, name, entries in answer.resources:
            if code:
                said = message or for_code(code).description
                raise BrokerError(f"the broker does not say how {name} is set up: {said}")
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        item["topic"]: Topic(item["topic"], len(item["partitions"]), configs[item["topic"]])
        for item in described
    }


def _status(name: str, made: list[str], wrong: list[Problem]) -> str:
    if name in made:
        return "created"
    return "wrong  " if any(item.topic == name for item in wrong) else "ok     "


def _described(topic: Topic) -> str:
    kept = int(topic.configs.get("retention.ms", -1))
    keeps = (
        "the last of each key"
        if topic.configs.get("cleanup.policy") == "compact"
        else f"records for {kept / 86_400_000:g} days"
        if kept >= 0
        else "records for ever"
    )
    return f"{topic.name}: {topic.partitions} partitions, keeps {keeps}"
