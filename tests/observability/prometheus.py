"""Prometheus and its tool as Debian has them, and the rules as they read them.

The operator's PrometheusRule is the only source: what promtool is given is made from it.
"""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

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


#: Metrics that alerts or panels name and nothing registers yet. A test says when one is there.
PENDING = {"tagstream_rules_reload_failures_total", "tagstream_rules_sweep_remaining"}
