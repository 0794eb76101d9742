"""README's consumers, run as they stand there."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.cluster import ends_with_us
from tests.broker.conftest import Kafka
from tests.broker.harness import Service
from tests.broker.purchases import purchases
from tests.broker.worker import ROOT

pytestmark = pytest.mark.broker


def examples() -> list[str]:
    """The consumers in README."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    return [block for block in blocks if "confluent_kafka" in block]


def test_the_consumers_in_the_readme_see_every_change(
    kafka: Kafka, prefix: str, tmp_path: Path
) -> None:
    """The second one sees each once, although it reads uncommitted records, and runs twice."""
    committed, once = (
        example.replace("localhost:9092", kafka.cluster.bootstrap).replace(
            '"tag-changes"', f'"{prefix}tag-changes"'
        )
        for example in examples()
    )
    with Service(kafka.cluster, prefix, tmp_path) as service:
        service.send(itertools.islice(purchases(seed=5), 300))
        service.start("a")
        service.wait_idle()
        service.changes.read()
        changes = [record.decoded() for record in service.changes.records()]
        assert changes
        wanted = sum(not change.get("control") for change in changes)
        assert len(lines_of(committed, wanted, tmp_path)) == wanted
        half = lines_of(once, len(changes) // 2, tmp_path)
        rest = lines_of(once, len(changes) - len(half), tmp_path)
        assert len(half) + len(rest) == len(changes)


def lines_of(program: str, number: int, folder: Path) -> list[str]:
    """The first ``number`` lines that a program writes."""
    with subprocess.Popen(
        ends_with_us([sys.executable, "-c", program]),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = list(itertools.islice(process.stdout, number))
        process.kill()
    return lines
