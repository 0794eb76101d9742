"""A real Kubernetes control plane on this machine, with nodes that are made up.

API server, controller manager, scheduler, etcd and kubectl are built from Kubernetes' own
source through the Go module proxy, at the versions in ``go.mod``, once, into the user's cache
directory; it takes minutes. kwok plays the nodes: it says that pods run and are ready, though
nothing does. So what is real is what an API server and the controllers make of manifests:
validation, Pod Security, scheduling, rolling updates, evictions, scaling. Images, probes,
signals and network policies are not.

Everything listens on free ports of 127.0.0.1 and ends with whoever started it.
"""

import hashlib
import json
import os
import platform
import secrets
import shutil
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.broker.cluster import ends_with_us, free_port
from tests.k8s import tools

HERE = Path(__file__).parent
KUBERNETES = "k8s.io/kubernetes"
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
KWOK = "sigs.k8s.io/kwok@v0.7.0"
#: What operators teach an API server, from their own modules.
CUSTOM_RESOURCES = {
    "github.com/prometheus-operator/prometheus-operator@v0.85.0": (
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
    "github.com/kedacore/keda/v2@v2.18.0": (
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
    ),
}
GO = {"GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}

START_S = 90.0
READY_MS = 3_000
"""A pod is ready so long after it was scheduled: in less, nothing would ever be disrupted."""
NEVER_READY = "never-ready"
"""A label: pods that have it run, and are never ready."""


def missing() -> str | None:
    """What this machine lacks to build and run it, with the remedy; None where it lacks nothing."""
    lacks = [f"no `{tool}`" for tool in ("go", "openssl") if not shutil.which(tool)]
    if platform.system() != "Linux":
        lacks.append("no Linux")
    if not lacks:
        return None
    return f"{' and '.join(lacks)} here; install Go 1.25 or later, and OpenSSL"


# -- built once


def build() -> Path:
    """The folder of the binaries, built unless they are in the cache."""
    inputs = (HERE / "go.mod").read_bytes() + (HERE / "go.sum").read_bytes() + KWOK.encode()
    binaries = tools.cache() / f"control-plane-{hashlib.sha256(inputs).hexdigest()[:12]}"
    if binaries.exists():
        return binaries
    binaries.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=binaries.parent) as unfinished:
        made = Path(unfinished, "bin")
        version = _go("list", "-m", "-f", "{{.Version}}", KUBERNETES).strip()
        flags = "-s -w " + " ".join(_stamps(version))
        packages = [f"{KUBERNETES}/cmd/{component}" for component in COMPONENTS]
        _go("build", "-trimpath", f"-ldflags={flags}", "-o", f"{made}/", *packages)
        # By name: the package's own ends in its version.
        _go(
            "build",
            "-trimpath",
            "-ldflags=-s -w",
            "-o",
            f"{made}/etcd",
            "go.etcd.io/etcd/server/v3",
        )
        package, _, at = KWOK.partition("@")
        _go("install", "-trimpath", "-ldflags=-s -w", f"{package}/cmd/kwok@{at}", GOBIN=str(made))
        made.rename(binaries)  # whole or not at all
    return binaries


def _stamps(version: str) -> Iterator[str]:
    """What a release build is told of its own version; clients and validation go by it."""
    major, minor, _ = version.removeprefix("v").split(".", 2)
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        yield f"-X {package}.gitVersion={version}"
        yield f"-X {package}.gitMajor={major}"
        yield f"-X {package}.gitMinor={minor}"


def _go(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        ["go", *arguments],
        cwd=HERE,
        env={**os.environ, **GO, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"go {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def module(name: str) -> Path:
    """The folder of a module, ``path@version``."""
    found: str = json.loads(_go("mod", "download", "-json", name))["Dir"]
    return Path(found)


# -- run


class ControlPlane:
    """etcd, API server, controllers, scheduler and nodes, from ``with`` to its end.

    Raises:
        RuntimeError: something does not come up; the end of its log says why.
    """

    def __init__(self, directory: Path, *, nodes: int) -> None:
        self.directory = directory
        self._nodes = nodes
        self._binaries = build()
        self._token = secrets.token_hex(16)
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    # -- asked

    def kubectl(
        self, *arguments: str | Path, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One command; its exit code is the caller's to look at."""
        return subprocess.run(
            [*self.command, *arguments], input=given, capture_output=True, text=True
        )

    @property
    def command(self) -> list[str | Path]:
        """kubectl, as it reaches this control plane."""
        return [self._binaries / "kubectl", "--kubeconfig", self.directory / "kubeconfig"]

    def said(self, *arguments: str | Path, given: str | None = None) -> str:
        """What a command says, which has to succeed."""
        done = self.kubectl(*arguments, given=given)
        assert done.returncode == 0, f"kubectl {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        """Objects, as they are now."""
        return json.loads(self.said("get", "--output=json", *arguments))

    # -- life and death

    def _start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        client, peer, secure, manager, scheduler, kwok = (free_port() for _ in range(6))
        etcd, api = f"http://127.0.0.1:{client}", f"https://127.0.0.1:{secure}"
        self._keys()
        self._kubeconfig(api)
        us = ["--kubeconfig=kubeconfig"]
        trusting = [
            "--authentication-kubeconfig=kubeconfig",
            "--authorization-kubeconfig=kubeconfig",
        ]
        local = ["--bind-address=127.0.0.1", "--leader-elect=false"]
        self._run(
            "etcd",
            *("--name=tests", "--data-dir=etcd", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={etcd}", f"--advertise-client-urls={etcd}"),
            f"--listen-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
            f"--initial-cluster=tests=http://127.0.0.1:{peer}",
            until=f"{etcd}/health",
        )
        self._run(
            "kube-apiserver",
            *(f"--etcd-servers={etcd}", f"--secure-port={secure}", "--cert-dir=certificates"),
            *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"),
            *("--endpoint-reconciler-type=none", "--service-cluster-ip-range=10.96.0.0/16"),
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=accounts.pub",
            "--service-account-signing-key-file=accounts.key",
            *("--token-auth-file=tokens.csv", "--authorization-mode=RBAC"),
            until=f"{api}/readyz",
        )
        self._run(
            "kube-controller-manager",
            *(*us, *trusting, *local, f"--secure-port={manager}", "--cert-dir=certificates"),
            "--service-account-private-key-file=accounts.key",
            "--use-service-account-credentials=false",
            until=f"https://127.0.0.1:{manager}/healthz",
        )
        self._run(
            "kube-scheduler",
            *(*us, *trusting, *local, f"--secure-port={scheduler}", "--cert-dir=certificates"),
            until=f"https://127.0.0.1:{scheduler}/healthz",
        )
        self._stages()
        self._run(
            "kwok",
            *(*us, "--config=stages.yaml", "--manage-all-nodes=true"),
            *("--node-lease-duration-seconds=40", f"--server-address=127.0.0.1:{kwok}"),
            until=f"http://127.0.0.1:{kwok}/healthz",
        )
        for name, files in CUSTOM_RESOURCES.items():
            for file in files:
                # The server's own: too large for what kubectl would note down beside them.
                self.said("apply", "--server-side", "--filename", module(name) / file)
        self.said("wait", "--for=condition=Established", "--all", "customresourcedefinitions")
        self.said("apply", "--filename=-", given=json.dumps(listed(nodes(self._nodes))))

    def _keys(self) -> None:
        for command in (
            ["genrsa", "-out", "accounts.key", "2048"],
            ["rsa", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"],
        ):
            subprocess.run(
                ["openssl", *command], cwd=self.directory, check=True, capture_output=True
            )
        (self.directory / "tokens.csv").write_text(f"{self._token},admin,admin,system:masters")

    def _kubeconfig(self, api: str) -> None:
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                # Its certificate is of its own making.
                {"name": "tests", "cluster": {"server": api, "insecure-skip-tls-verify": True}}
            ],
            "users": [{"name": "admin", "user": {"token": self._token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
            "current-context": "tests",
        }
        path = self.directory / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))

    def _stages(self) -> None:
        """How kwok has pods and nodes go on: its own fast stages, but no pod is ready at once."""
        folder = module(KWOK) / "kustomize/stage"
        stages = [
            yaml.safe_load((folder / name).read_text())
            for name in (
                "node/fast/node-initialize.yaml",
                "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
                "pod/fast/pod-ready.yaml",
                "pod/fast/pod-complete.yaml",
                "pod/fast/pod-delete.yaml",
            )
        ]
        (ready,) = (stage for stage in stages if stage["metadata"]["name"] == "pod-ready")
        ready["spec"]["delay"] = {"durationMilliseconds": READY_MS}
        never = json.loads(json.dumps(ready))
        never["metadata"]["name"] = "pod-never-ready"
        never["spec"]["next"]["statusTemplate"] = ready["spec"]["next"]["statusTemplate"].replace(
            'status: "True"\n  type: Ready', 'status: "False"\n  type: Ready'
        )
        assert never["spec"]["next"] != ready["spec"]["next"]
        label = f'.metadata.labels["{NEVER_READY}"]'
        for stage, operator in ((ready, "DoesNotExist"), (never, "Exists")):
            found = {"key": label, "operator": operator}
            stage["spec"]["selector"]["matchExpressions"].append(found)
        (self.directory / "stages.yaml").write_text(yaml.safe_dump_all([*stages, never]))

    def _run(self, name: str, *arguments: str, until: str) -> None:
        """Start a component and wait until ``until`` answers."""
        log = self.directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ends_with_us([str(self._binaries / name), *arguments]),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while not self._answers(until):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not come up:\n{log.read_text()[-2_000:]}")
            with_luck_ended(process, 0.1)

    def _answers(self, url: str) -> bool:
        asking = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token}"})
        anyone = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(asking, timeout=2, context=anyone):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def _stop(self) -> None:
        """At once: what they have is thrown away. etcd last, without which others hang."""
        for process in reversed(self._processes):
            process.kill()
            process.wait()


def with_luck_ended(process: subprocess.Popen[bytes], wait_s: float) -> None:
    """Let ``wait_s`` pass, or less where the process ends."""
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        return


def nodes(count: int) -> list[dict[str, Any]]:
    """Nodes in three zones, each with room for a few workers."""
    room = {"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": f"node-{number}",
                "labels": {
                    "kubernetes.io/hostname": f"node-{number}",
                    "kubernetes.io/os": "linux",
                    "topology.kubernetes.io/zone": f"zone-{number % 3}",
                },
            },
            "status": {"capacity": room, "allocatable": room},
        }
        for number in range(count)
    ]


def volumes(prefix: str, count: int, mode: str) -> list[dict[str, Any]]:
    """Disks that claims find, since nobody here makes any on demand."""
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{prefix}-{number}"},
            "spec": {
                "capacity": {"storage": "100Gi"},
                "accessModes": [mode],
                "hostPath": {"path": f"/disks/{prefix}-{number}"},
            },
        }
        for number in range(count)
    ]


def listed(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Objects as one."""
    return {"apiVersion": "v1", "kind": "List", "items": items}
