"""The image: no engine builds it here, so what its file says is held against the project."""

import json
import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

from stream.settings import Settings, variable_of
from tests.k8s.manifests import ROOT, worker

LINES = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def said(instruction: str) -> list[str]:
    """What follows each line of this instruction."""
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(instruction + " ")]


def test_hadolint_has_nothing_to_say():
    """At its strictest: the lowest level of all fails."""
    hadolint = Path(sysconfig.get_path("scripts"), "hadolint")
    command = [str(hadolint), "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_built_and_run_on_one_python_which_the_project_supports():
    """A fixed one: what the first stage compiles, with its compiler, is run in the second."""
    build, run = (base.split()[0] for base in said("FROM"))
    assert build == run.replace("-slim-", "-")
    assert any(command.startswith("TAGSTREAM_COMPILE=1 ") for command in said("RUN"))
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-bookworm", run)
    assert version is not None
    assert PROJECT["requires-python"] == f">={version[1]}"


def test_everything_that_pip_needs_is_copied_and_let_through():
    """Packages, and the files that pyproject.toml names; .dockerignore keeps none of it out."""
    copied = {path for line in said("COPY")[:-2] for path in line.split()[:-1]}
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name.partition(".")[0] for name in tool["packages"]}
    assert copied == {"pyproject.toml", "LICENSE", PROJECT["readme"], *packages}
    through = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied == {line[1:] for line in through if line.startswith("!")}


def test_a_signal_reaches_the_worker_itself(objects):
    """Exec form, which needs no shell; the manifests give arguments only."""
    assert [json.loads(line) for line in said("ENTRYPOINT") + said("CMD")] == [
        ["tagstream"],
        ["worker"],
    ]
    assert "command" not in worker(objects).container


def test_the_user_is_a_number_and_the_one_of_the_manifests(objects):
    """Kubernetes cannot tell whether a name is root."""
    (user,) = said("USER")
    context = worker(objects).spec["securityContext"]
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert context["fsGroup"] == context["runAsGroup"]


def test_its_data_directory_and_port_are_those_of_the_manifests(objects):
    """The directory belongs to the user; without Kubernetes the same image runs as well."""
    settings = worker(objects).settings(objects)
    variables = dict(pair.split("=", 1) for line in said("ENV") for pair in line.split())
    assert variables[variable_of("data_dir")] == str(settings.data_dir)
    assert any(line.endswith(f"/empty {settings.data_dir}") for line in said("COPY"))
    assert said("EXPOSE") == [str(Settings.load({}, {}).web_port)]
