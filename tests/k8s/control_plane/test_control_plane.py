"""What a real API server, its controllers and its scheduler make of every overlay.

Each test begins with nothing applied and ends with its namespace deleted. Nodes are made up:
see `tests/k8s/control_plane/cluster.py` for what that leaves out.
"""

import json
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.control_plane.cluster import NEVER_READY, ControlPlane, listed, volumes
from tests.k8s.manifests import K8S, OVERLAYS, Object, of_kind, render, the

pytestmark = pytest.mark.control_plane

NODES, MOST_PODS = 6, 8
WAIT = "--timeout=120s"
WORKERS = "--selector=app.kubernetes.io/component=worker"


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One for all tests, with nodes and what operators would have added."""
    with ControlPlane(tmp_path_factory.mktemp("control-plane"), nodes=NODES) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Deployed:
    """An overlay in a namespace of the control plane."""

    plane: ControlPlane
    namespace: str
    overlay: Path

    def apply(self, *, overlay: Path | None = None) -> None:
        """As strictly as the server can: unknown fields are refused, no warning is let pass."""
        done = self.plane.kubectl(
            *("apply", "--server-side", "--force-conflicts", "--validate=strict"),
            *("--warnings-as-errors", "--kustomize", overlay or self.overlay),
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr

    def do(self, *arguments: str, given: str | None = None) -> str:
        """A command in the namespace, which has to succeed."""
        return self.plane.said(*arguments, f"--namespace={self.namespace}", given=given)

    def get(self, *arguments: str) -> Any:
        return self.plane.get(*arguments, f"--namespace={self.namespace}")

    def until_rolled_out(self) -> None:
        self.do("rollout", "status", "statefulset/tagstream", WAIT)

    def pods(self) -> dict[str, Object]:
        """The workers by name."""
        return {pod["metadata"]["name"]: pod for pod in self.get("pods", WORKERS)["items"]}

    def claims(self) -> set[str]:
        return {
            claim["metadata"]["name"]
            for claim in self.get("persistentvolumeclaims")["items"]
            if "deletionTimestamp" not in claim["metadata"]
        }

    def evict(self, pod: str) -> subprocess.CompletedProcess[str]:
        """Ask for what a drain asks for."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod, "namespace": self.namespace},
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        return self.plane.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(eviction))


@pytest.fixture
def overlay(request: pytest.FixtureRequest) -> str:
    """The one in production, unless a test names others."""
    name: str = getattr(request, "param", "prod")
    return name


@pytest.fixture
def deployed(
    plane: ControlPlane, overlay: str, request: pytest.FixtureRequest
) -> Iterator[Deployed]:
    """The overlay applied, its pods ready, on disks that were there before."""
    objects = render(overlay)
    namespace: str = the(objects, "Namespace")["metadata"]["name"]
    (claim,) = the(objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
    (mode,) = claim["spec"]["accessModes"]
    disks = volumes(f"disk-{secrets.token_hex(4)}", MOST_PODS, mode)
    plane.said("apply", "--filename=-", given=json.dumps(listed(disks)))
    here = Deployed(plane, namespace, K8S / "overlays" / overlay)
    here.apply()
    here.until_rolled_out()
    yield here
    plane.said("delete", "namespace", namespace, WAIT)
    plane.said("delete", "--filename=-", given=json.dumps(listed(disks)))


def is_ready(pod: Object) -> bool:
    """And not on its way out."""
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


class Watched:
    """Every state that the workers' pods go through, from ``with`` to its end."""

    def __init__(self, deployed: Deployed, output: Path) -> None:
        self._command = [
            *deployed.plane.command,
            *("get", "pods", WORKERS, f"--namespace={deployed.namespace}"),
            *("--watch", "--output-watch-events", "--output=json"),
        ]
        self._output = output
        self._before = deployed.pods()

    def __enter__(self) -> "Watched":
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(self._command, stdout=output)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def fewest_ready(self) -> int:
        """How many were ready at the worst moment."""
        pods, fewest = dict(self._before), len(self._before)
        for event in self.events():
            pods[event["object"]["metadata"]["name"]] = event["object"]
            if event["type"] == "DELETED":
                del pods[event["object"]["metadata"]["name"]]
            fewest = min(fewest, sum(map(is_ready, pods.values())))
        return fewest

    def replaced(self) -> list[str]:
        """The pods that were deleted, in order."""
        events = [event for event in self.events() if event["type"] == "DELETED"]
        return [event["object"]["metadata"]["name"] for event in events]

    def events(self) -> Iterator[Any]:
        text, decoder, place = self._output.read_text(), json.JSONDecoder(), 0
        while place < len(text):
            try:
                event, place = decoder.raw_decode(text, place)
            except json.JSONDecodeError:
                return  # the watch was ended in the middle of the next
            yield event
            place += len(text[place:]) - len(text[place:].lstrip())


# -- applied


@pytest.mark.parametrize("overlay", OVERLAYS, indirect=True)
def test_every_overlay_is_applied_without_a_warning_and_all_its_pods_are_ready(deployed):
    """Strict validation and Pod Security on a real server; applied again, nothing changes."""
    objects = render(deployed.overlay.name)
    replicas = the(objects, "StatefulSet")["spec"].get("replicas", 1)
    pods = deployed.pods()
    assert pods.keys() == {f"tagstream-{number}" for number in range(replicas)}
    assert all(map(is_ready, pods.values()))
    assert deployed.claims() == {f"data-{name}" for name in pods}
    for job in of_kind(objects, "Job"):
        deployed.do("wait", "--for=condition=Complete", f"job/{job['metadata']['name']}", WAIT)
    addresses = deployed.get("endpointslices", "--selector=kubernetes.io/service-name=tagstream")
    (slice_,) = addresses["items"]
    assert len(slice_["endpoints"]) == replicas
    before = deployed.get("statefulset", "tagstream")["metadata"]["generation"]
    deployed.apply()
    assert deployed.get("statefulset", "tagstream")["metadata"]["generation"] == before


def test_workers_in_production_are_spread_over_nodes(deployed):
    """No node has two while another has none."""
    hosts = [pod["spec"]["nodeName"] for pod in deployed.pods().values()]
    assert len(set(hosts)) == len(hosts)


def test_what_is_wrong_is_refused(deployed, tmp_path):
    """A field that nobody knows, and a pod that would be more than it may."""
    wrong = changed(deployed.overlay, tmp_path)
    place = wrong.parents[1] / "base/statefulset.yaml"
    place.write_text(place.read_text().replace("serviceName:", "serviceNme:"))
    done = deployed.plane.kubectl(
        "apply", "--server-side", "--validate=strict", "--dry-run=server", "--kustomize", wrong
    )
    assert done.returncode != 0
    assert "serviceNme" in done.stderr
    root = yaml.safe_load((K8S / "base/job-topics.yaml").read_text())["spec"]["template"]["spec"]
    root["containers"][0]["securityContext"]["capabilities"] = {"add": ["SYS_ADMIN"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root"}, "spec": root}
    done = deployed.plane.kubectl(
        "create", f"--namespace={deployed.namespace}", "--filename=-", given=json.dumps(pod)
    )
    assert "violates PodSecurity" in done.stderr


def changed(overlay: Path, tmp_path: Path) -> Path:
    """The overlay in a copy of all manifests, to be changed at will."""
    return Path(shutil.copytree(K8S, tmp_path / "k8s"), "overlays", overlay.name)


# -- updated


def test_changed_settings_replace_one_pod_at_a_time(deployed, tmp_path):
    """The upgrade that README describes: all but one are ready at every moment."""
    overlay = changed(deployed.overlay, tmp_path)
    with (overlay / "settings.env").open("a") as settings:
        settings.write("TAGSTREAM_LOG_LEVEL=WARNING\n")
    before = deployed.pods()
    deployed.do("delete", "job", "tagstream-topics", "--ignore-not-found")
    with Watched(deployed, tmp_path / "events") as watched:
        deployed.apply(overlay=overlay)
        deployed.until_rolled_out()
    assert watched.replaced() == sorted(before, reverse=True)
    assert watched.fewest_ready() == len(before) - 1
    assert deployed.claims() == {f"data-{name}" for name in before}


def test_changed_definitions_replace_no_pod(deployed, tmp_path):
    """Workers read them anew; the pods stay, and find them under the name they know."""
    overlay = changed(deployed.overlay, tmp_path)
    (overlay.parents[1] / "base/tags.yaml").write_text("version: 2\n")
    before = deployed.get("statefulset", "tagstream")["metadata"]["generation"]
    deployed.apply(overlay=overlay)
    assert deployed.get("statefulset", "tagstream")["metadata"]["generation"] == before
    assert deployed.get("configmap", "tagstream-tags")["data"] == {"tags.yaml": "version: 2\n"}


def test_a_version_that_never_gets_ready_stops_at_its_first_pod_and_blocks_no_drain(deployed):
    """The others stay as they were; the broken one may be evicted, and after a way back heals."""
    before = deployed.pods()
    label = {"spec": {"template": {"metadata": {"labels": {NEVER_READY: "true"}}}}}
    deployed.do("patch", "statefulset", "tagstream", "--patch", json.dumps(label))
    broken = max(before)
    deployed.do("wait", f"--for=jsonpath={{.metadata.labels.{NEVER_READY}}}", f"pod/{broken}", WAIT)
    deployed.do("wait", "--for=jsonpath={.status.phase}=Running", f"pod/{broken}", WAIT)
    now = deployed.pods()
    assert [name for name in now if not is_ready(now[name])] == [broken]
    assert {name for name in now if NEVER_READY in now[name]["metadata"]["labels"]} == {broken}
    assert "Cannot evict" in deployed.evict(min(before)).stderr
    deployed.do("rollout", "undo", "statefulset/tagstream")
    assert deployed.evict(broken).returncode == 0
    deployed.until_rolled_out()
    assert all(map(is_ready, deployed.pods().values()))


# -- disturbed and scaled


def test_an_eviction_waits_until_the_pod_evicted_before_is_back(deployed):
    """The budget lets a drain have one worker at a time."""
    first, second = sorted(deployed.pods())[:2]
    assert deployed.evict(first).returncode == 0
    refused = deployed.evict(second)
    assert refused.returncode != 0
    assert "Cannot evict pod as it would violate the pod's disruption budget" in refused.stderr
    deployed.do("wait", "--for=create", f"pod/{first}", WAIT)
    deployed.do("wait", "--for=condition=Ready", f"pod/{first}", WAIT)
    deployed.do(
        "wait",
        "--for=jsonpath={.status.disruptionsAllowed}=1",
        "poddisruptionbudget/tagstream",
        WAIT,
    )
    assert deployed.evict(second).returncode == 0
    deployed.until_rolled_out()


def test_scaled_up_and_down_again_the_disks_of_those_that_left_are_gone(deployed):
    """Those that stay are not disturbed; a worker that comes back begins with an empty disk."""
    before = deployed.pods()
    deployed.do("scale", "statefulset/tagstream", f"--replicas={MOST_PODS}")
    deployed.until_rolled_out()
    assert len(deployed.claims()) == MOST_PODS
    deployed.do("scale", "statefulset/tagstream", f"--replicas={len(before)}")
    for number in range(len(before), MOST_PODS):
        deployed.do("wait", "--for=delete", f"pvc/data-tagstream-{number}", WAIT)
    after = deployed.pods()
    assert {name: pod["metadata"]["uid"] for name, pod in after.items()} == {
        name: pod["metadata"]["uid"] for name, pod in before.items()
    }
    assert deployed.claims() == {f"data-{name}" for name in before}


def test_stopped_as_a_whole_and_started_again_workers_find_their_disks(deployed):
    """What README says for a release that needs all workers stopped."""
    before = {claim["metadata"]["uid"] for claim in deployed.get("pvc")["items"]}
    deployed.do("delete", "statefulset", "tagstream")
    for name in deployed.pods():
        deployed.do("wait", "--for=delete", f"pod/{name}", WAIT)
    assert deployed.pods() == {}
    deployed.apply()
    deployed.until_rolled_out()
    assert {claim["metadata"]["uid"] for claim in deployed.get("pvc")["items"]} == before


def test_the_number_of_workers_is_handed_over_to_keda(deployed):
    """By the command in the component; without it Kubernetes would take it back to 1."""
    text = (K8S / "components/autoscaling/kustomization.yaml").read_text()
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    command, *manifest = (line for line in lines if line != "END")
    before = deployed.pods()
    program, *arguments = shlex.split(command.removesuffix(" <<'END'"))
    assert program == "kubectl"
    deployed.plane.said(*arguments, given="\n".join(manifest))
    deployed.apply(overlay=K8S / "overlays/prod-autoscaled")
    deployed.until_rolled_out()
    assert deployed.pods().keys() == before.keys()


@pytest.mark.parametrize("overlay", ["prod-autoscaled"], indirect=True)
def test_what_was_scaled_is_not_scaled_back_by_the_next_apply(deployed):
    """KEDA's number stands: the manifest has none of its own."""
    deployed.do("scale", "statefulset/tagstream", "--replicas=3")
    deployed.until_rolled_out()
    deployed.apply()
    assert deployed.get("statefulset", "tagstream")["spec"]["replicas"] == 3
