"""A real Apache Kafka on this machine, for tests and benchmarks.

Kafka's own jars come through Maven, once, into the user's cache directory. Brokers
run in KRaft mode (each is its own controller too) on free ports of 127.0.0.1, with
nothing else installed: no container, no ZooKeeper. Each has a plain listener and,
where ``secure``, one that asks for SASL/PLAIN and one with TLS under a certificate
made on the spot.

Every broker ends with whoever started it: at ``stop``, at the end of the ``with``
block, or (Linux) with the thread that called ``start``, however that ends.

Run as a command, it fetches the jars.
"""

import base64
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Listener = Literal["PLAIN", "SASL", "TLS"]

USER, PASSWORD = "tagstream", "wind-in-the-willows"
POM = Path(__file__).with_name("pom.xml")
JAVA_VERSION = 17
START_S, STOP_S = 60.0, 20.0
# ApiVersions 0, correlation id 0, no client id: a broker that answers is up, not just bound.
API_VERSIONS = bytes.fromhex("0000000a 0012 0000 00000000 0000")


def missing() -> str | None:
    """What this machine lacks to run a broker, with the remedy; None where it lacks nothing."""
    lacks = []
    if _java_version() < JAVA_VERSION:
        lacks.append(f"no `java` {JAVA_VERSION} or later")
    if not shutil.which("mvn") and not _jars().exists():
        lacks.append("no `mvn`")
    if not lacks:
        return None
    return f"{' and '.join(lacks)} on PATH; install openjdk-17-jre-headless and maven"


def fetch(pom: Path = POM) -> Path:
    """Copy the jars that ``pom`` names into the cache, unless they are there; their folder."""
    jars = _jars(pom)
    if jars.exists():
        return jars
    jars.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=jars.parent) as unfinished:
        copied = Path(unfinished, "jars")
        maven = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
        done = subprocess.run(
            [*maven, f"-DoutputDirectory={copied}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"Maven could not fetch {pom}:\n{done.stdout}{done.stderr}")
        try:
            copied.rename(jars)  # whole or not at all
        except OSError:
            if not jars.exists():  # nor has another process put them there meanwhile
                raise
    return jars


def _jars(pom: Path = POM) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "tagstream" / f"kafka-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"


def _java_version() -> int:
    if not shutil.which("java"):
        return 0
    said = subprocess.run(["java", "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', said)
    return int(found[1]) if found else 0


def free_port(many: int = 1) -> int:
    """A free port of 127.0.0.1 that the system hands to no client as a source port, the first of
    so ``many``.

    So a broker that was killed finds its port free when it starts again, and a client that
    knocks meanwhile cannot be connected to itself.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        try:
            for following in range(many):
                socket.create_server(("127.0.0.1", port + following)).close()
        except OSError:
            continue
        return port


def ends_with_us(command: list[str]) -> list[str]:
    """``command``, made to be killed when the thread that starts it ends (where setpriv exists)."""
    return ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else command


class Cluster:
    """Brokers numbered from 0, in one directory: their settings, logs and data.

    ``settings`` are broker settings by Kafka's names and go before the defaults here.
    Topics are not made on first use.
    """

    def __init__(
        self,
        directory: Path,
        *,
        brokers: int = 1,
        secure: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.secure = secure
        self.settings = dict(settings or {})
        # Not an id that begins with "-": it would be taken for an option.
        self._id = "k" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:].rstrip("=")
        names = ["CONTROLLER", "PLAIN", *(["SASL", "TLS"] if secure else [])]
        self._ports = [{name: free_port() for name in names} for _ in range(brokers)]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        """Stop at once and delete the data; the logs stay."""
        for number in list(self._processes):
            self.kill(number)
        for data in self.directory.glob("data*"):
            shutil.rmtree(data)

    # -- where it is

    @property
    def bootstrap(self) -> str:
        """Addresses of the plain listeners: ``host:port,...``."""
        return self.servers("PLAIN")

    def servers(self, listener: Listener) -> str:
        """Addresses of one kind of listener: ``host:port,...``."""
        return ",".join(f"127.0.0.1:{ports[listener]}" for ports in self._ports)

    @property
    def certificate(self) -> Path:
        """What a TLS client has to trust (PEM)."""
        return self.directory / "certificate.pem"

    # -- life and death

    def start(self) -> None:
        """Start every broker that is not running; returns when all answer."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.secure and not self.certificate.exists():
            self._certify()
        stopped = [number for number in range(len(self._ports)) if number not in self._processes]
        for number in stopped:
            self._launch(number)
        for number in stopped:
            self._await_answer(number)

    def restart(self, broker: int = 0) -> None:
        """Start a killed broker again on its own data; returns when it answers."""
        self._launch(broker)
        self._await_answer(broker)

    def kill(self, broker: int = 0) -> None:
        """SIGKILL; returns when the process is gone."""
        process = self._processes.pop(broker)
        process.kill()
        process.wait()

    def pause(self, broker: int = 0) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._processes[broker].send_signal(signal.SIGSTOP)

    def resume(self, broker: int = 0) -> None:
        """SIGCONT, after ``pause``."""
        self._processes[broker].send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all brokers in order; the data stays, and ``start`` goes on with it."""
        for number, process in self._processes.items():
            self.resume(number)
            process.terminate()
        for number, process in list(self._processes.items()):
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.kill(number)
        self._processes.clear()

    # -- how

    def _launch(self, broker: int) -> None:
        properties = self.directory / f"broker{broker}.properties"
        properties.write_text(
            "".join(f"{name}={value}\n" for name, value in self._properties(broker).items())
        )
        with self._log(broker).open("ab") as log:
            if not (self._data(broker) / "meta.properties").exists():
                subprocess.run(
                    _java("kafka.tools.StorageTool", "format", "-t", self._id, "-c", properties),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                )
            self._processes[broker] = subprocess.Popen(
                ends_with_us(_java("kafka.Kafka", properties)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
            )

    def _await_answer(self, broker: int) -> None:
        address = ("127.0.0.1", self._ports[broker]["PLAIN"])
        deadline = time.monotonic() + START_S
        while self._processes[broker].poll() is None and time.monotonic() < deadline:
            try:
                with socket.create_connection(address, timeout=2) as connection:
                    connection.sendall(API_VERSIONS)
                    if connection.recv(1):
                        return
            except OSError:
                time.sleep(0.1)  # between two tries
        tail = self._log(broker).read_text(errors="replace")[-3_000:]
        raise RuntimeError(f"broker {broker} did not come up:\n{tail}")

    def _properties(self, broker: int) -> dict[str, object]:
        ports = self._ports[broker]
        listeners = {name: f"{name}://127.0.0.1:{port}" for name, port in ports.items()}
        replicas = min(3, len(self._ports))
        in_sync = max(1, replicas - 1)
        properties: dict[str, object] = {
            "node.id": broker,
            "process.roles": "broker,controller",
            "controller.quorum.voters": ",".join(
                f"{number}@127.0.0.1:{each['CONTROLLER']}"
                for number, each in enumerate(self._ports)
            ),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listeners": ",".join(listeners.values()),
            "advertised.listeners": ",".join(
                listener for name, listener in listeners.items() if name != "CONTROLLER"
            ),
            "listener.security.protocol.map": (
                "CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL"
            ),
            "log.dirs": self._data(broker),
            "auto.create.topics.enable": "false",
            "default.replication.factor": replicas,
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": replicas,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": in_sync,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": replicas,
            "group.initial.rebalance.delay.ms": 0,
            # A killed broker is let in again only when its session is over; the default is 9 s.
            "broker.session.timeout.ms": 2_000,
            "broker.heartbeat.interval.ms": 500,
            "log.cleaner.dedupe.buffer.size": 16 << 20,  # the default takes 128 MiB of the heap
        }
        if self.secure:
            properties |= {
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl.plain.sasl.jaas.config": (
                    "org.apache.kafka.common.security.plain.PlainLoginModule required "
                    f'user_{USER}="{PASSWORD}";'
                ),
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.location": self._keystore,
                "ssl.keystore.password": PASSWORD,
            }
        return properties | self.settings

    def _certify(self) -> None:
        """Make the brokers' key, and the certificate that they show and sign by themselves."""
        store = f"-alias broker -keystore {self._keystore} -storetype PKCS12 -storepass {PASSWORD}"
        for verb in (
            "-genkeypair -keyalg RSA -validity 30 -dname CN=127.0.0.1 -ext SAN=IP:127.0.0.1",
            f"-exportcert -rfc -file {self.certificate}",
        ):
            command = f"keytool {verb} {store}"
            subprocess.run(command.split(), check=True, capture_output=True)

    @property
    def _keystore(self) -> Path:
        return self.directory / "broker.p12"

    def _data(self, broker: int) -> Path:
        return self.directory / f"data{broker}"

    def _log(self, broker: int) -> Path:
        return self.directory / f"broker{broker}.log"


def _java(program: str, *arguments: str | Path) -> list[str]:
    return [
        *("java", "-Xms256m", "-Xmx512m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"),
        *("-cp", f"{fetch()}/*", program, *map(str, arguments)),
    ]


if __name__ == "__main__":
    print(fetch())
