"""A `tagstream worker` as it is deployed: a process of its own that knows nothing of the tests.

Settings in the environment, readiness over HTTP, and everything that can befall a
process: signals, and a disk that is gone. Every wait is for a condition, with a deadline
that only a failure reaches.
"""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from tests.broker.cluster import ends_with_us, free_port

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "stream"]
DEADLINE_S = 120.0


def wait_until(holds: Callable[[], object], what: str, within_s: float = DEADLINE_S) -> None:
    """Return as soon as ``holds()`` is true.

    Raises:
        AssertionError: it is still not after ``within_s`` seconds.
    """
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(0.02)  # between two looks


class Worker:
    """One `tagstream worker`, its settings and its data directory.

    Of several processes, where the settings say so, the first answers for what all know.
    """

    def __init__(self, directory: Path, settings: Mapping[str, str]) -> None:
        self.directory = directory
        self.processes = int(settings.get("TAGSTREAM_PROCESSES", "1"))
        self.port = free_port(self.processes)
        self.settings = {
            **settings,
            "TAGSTREAM_DATA_DIR": str(directory / "data"),
            "TAGSTREAM_INSTANCE_ID": directory.name,
            "TAGSTREAM_WEB_PORT": str(self.port),
        }
        self._process: subprocess.Popen[bytes] | None = None

    # -- life and death

    def start(self) -> Self:
        """Start the process; `wait_ready` waits for it."""
        assert self._process is None
        self.directory.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ends_with_us([*COMMAND, "worker"]),
                cwd=ROOT,
                env=environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as a deployment does; the worker has to end well, and in time.

        Raises:
            AssertionError: it did not.
        """
        code = self._end(signal.SIGTERM)
        assert code == 0, f"{self.directory.name} ended with {code} on SIGTERM:\n{self.tail()}"

    def pause(self) -> None:
        """SIGSTOP: nothing runs, connections stay open."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT, after `pause`."""
        self.process.send_signal(signal.SIGCONT)

    def delete_disk(self) -> None:
        """Delete the data directory of a worker that does not run."""
        assert self._process is None
        shutil.rmtree(self.directory / "data")

    def ended(self) -> int | None:
        """The exit code of a process that ended by itself; `start` starts a new one."""
        code = None if self._process is None else self._process.poll()
        if code is not None:
            self._process = None
        return code

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self.process, None
        process.send_signal(how)
        try:
            return process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"still running 30 s after {how.name}:\n{self.tail()}") from None

    @property
    def running(self) -> bool:
        """Whether there is a process, paused or not, as far as we know."""
        return self._process is not None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None, f"{self.directory.name} is not running"
        return self._process

    # -- what it says

    def get(self, path: str, index: int = 0) -> tuple[int, str]:
        """Status and body of ``GET path`` of one process; status 0 where nobody listens."""
        url = f"http://127.0.0.1:{self.port + index}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Whether `/readyz` says that state is recovered and partitions are assigned."""
        return self.running and all(self._readiness())

    def has_begun(self) -> bool:
        """Whether any of its processes is ready."""
        return any(self._readiness())

    def _readiness(self) -> Iterator[bool]:
        return (self.get("/readyz", index)[0] == 200 for index in range(self.processes))

    def wait_ready(self) -> Self:
        """Return once the worker is ready.

        Raises:
            AssertionError: it ended instead, or took too long.
        """
        deadline = time.monotonic() + DEADLINE_S
        while not self.ready():
            code = self.ended()
            assert code is None, f"{self.directory.name} ended with {code}:\n{self.tail()}"
            assert time.monotonic() < deadline, f"not ready:\n{self.tail()}"
            time.sleep(0.02)  # between two looks
        return self

    def metric(self, name: str) -> float:
        """The sum of all series of one metric; NaN where it has none now."""
        values = self._series(name)
        return sum(values) if values else math.nan

    def partitions(self) -> int:
        """How many partitions the worker owns, open or being opened."""
        return sum(self.shares())

    def shares(self) -> list[int]:
        """How many of them each process owns."""
        owned = 'tagstream_applied_offset{domain="purchases"'
        return [len(self._of_process(index, owned)) for index in range(self.processes)]

    def _series(self, start: str) -> list[float]:
        found: list[float] = []
        for index in range(self.processes):
            found += self._of_process(index, start)
        return found

    def _of_process(self, index: int, start: str) -> list[float]:
        lines = self.get("/metrics", index)[1].splitlines()
        found = [line for line in lines if re.match(rf"{re.escape(start)}[ ,{{]", line)]
        return [float(line.rpartition(" ")[2]) for line in found]

    @property
    def log(self) -> Path:
        """What all processes of this worker wrote to standard output and error."""
        return self.directory / "log"

    def tail(self) -> str:
        """The end of the log."""
        return self.log.read_text(errors="replace")[-4_000:]

    # -- what it takes (Linux)

    def cpu_s(self) -> float:
        """CPU seconds so far, all processes and threads."""
        return sum(cpu_seconds(pid) for pid in [self.process.pid, *self.children()])

    def resident_mib(self, which: str = "VmRSS") -> float:
        """Resident memory in MiB, all processes; ``VmHWM``: their peaks."""
        return sum(resident_mib(pid, which) for pid in [self.process.pid, *self.children()])

    def children(self) -> list[int]:
        """The ids of the processes of a worker that has several."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]


def resident_mib(pid: int, which: str) -> float:
    """A line of a process's status in MiB (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == which:
            return int(value.split()[0]) / 1024
    raise KeyError(which)


def cpu_seconds(pid: int) -> float:
    """CPU seconds that a process has used so far, all threads (Linux)."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Our environment with ``settings`` for the only settings of tagstream."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("TAGSTREAM_")}
    return {**inherited, **settings}


def tagstream(*arguments: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command of tagstream to its end; the caller judges exit code and output."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=ROOT,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
