"""Prometheus and its tool as Debian has them, and the rules as they read them.

The operator's PrometheusRule is the only source: what promtool is given is made from it.
"""

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.broker.cluster import ends_with_us, free_port

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "components" / "monitoring"
RULES = MONITORING / "prometheus-rule.yaml"


def missing() -> str | None:
    """What this machine lacks, with the remedy; None where it lacks nothing."""
    lacking = [name for name in ("prometheus", "promtool") if shutil.which(name) is None]
    if not lacking:
        return None
    return f"no {' or '.join(lacking)}: apt-get install prometheus"


@cache
def groups() -> list[dict[str, Any]]:
    """Groups of rules, as Prometheus' own files have them."""
    listed: list[dict[str, Any]] = yaml.safe_load(RULES.read_text("utf-8"))["spec"]["groups"]
    return listed


def rules() -> list[dict[str, Any]]:
    """Every rule, in order."""
    return [rule for group in groups() for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """The alerts by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def write_rules(path: Path, *, annotated: bool = True) -> Path:
    """The rules as a file for Prometheus or promtool."""
    written = [
        {
            **group,
            "rules": [
                {name: part for name, part in rule.items() if annotated or name != "annotations"}
                for rule in group["rules"]
            ],
        }
        for group in groups()
    ]
    path.write_text(yaml.safe_dump({"groups": written}), "utf-8")
    return path


def promtool(*arguments: str | Path, text: str | None = None) -> tuple[int, str]:
    """Exit code and everything that was said."""
    done = subprocess.run(["promtool", *arguments], input=text, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """A server of its own that scrapes one worker every second and evaluates our rules.

    ``before`` has samples of the past, in OpenMetrics: what is compared with a week ago has
    something to be compared with.
    """

    def __init__(self, directory: Path, target: str, before: str) -> None:
        self.directory = directory
        self.port = free_port()
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(write_rules(directory / "rules.yml"))],
            "scrape_configs": [
                {"job_name": "tagstream", "static_configs": [{"targets": [target]}]}
            ],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
        history = directory / "before.txt"
        history.write_text(before, "utf-8")
        code, said = promtool(
            *("tsdb", "create-blocks-from", "openmetrics", "--quiet"), history, directory / "tsdb"
        )
        assert code == 0, said
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                ends_with_us(
                    [
                        "prometheus",
                        f"--config.file={directory / 'prometheus.yml'}",
                        f"--storage.tsdb.path={directory / 'tsdb'}",
                        f"--web.listen-address=127.0.0.1:{self.port}",
                    ]
                ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self) -> None:
        """Returns when the process is gone."""
        self._process.terminate()
        self._process.wait(30)

    def ready(self) -> bool:
        """Whether it answers queries."""
        assert self._process.poll() is None, (self.directory / "log").read_text()
        try:
            return bool(self.get("/-/ready")[0] == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> tuple[int, bytes]:
        """Status and body of an answer."""
        query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}{query}", timeout=30
            ) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the API.

        Raises:
            AssertionError: it is an error, or comes with a warning.
        """
        status, body = self.get(f"/api/v1/{path}", **parameters)
        answer = json.loads(body)
        assert status == 200, (parameters, answer)
        assert not answer.get("warnings"), (parameters, answer)
        return answer["data"]

    def values(self, expression: str) -> list[float]:
        """What an expression says now, one value for each series."""
        result = self.ask("query", query=expression)["result"]
        return [float(series["value"][1]) for series in result]
