"""``tagstream worker``: the service, until it is told to stop.

SIGTERM and SIGINT end it in good order: what has gathered is committed, partitions are let
go, exit 0. Any error that stops it is one line (a fault of ours shows its traceback), exit 1;
start it again: it goes on from the last transaction committed. A shutdown that hangs, on a
broker that does not answer say, is cut off after `SHUTDOWN_S`: nothing is lost by that.

Told to use several processes it starts as many of itself, each a member of the group like any
worker, and ends when one of them does.
"""

import asyncio
import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from stream import garbage
from stream.app import Tagstream
from stream.commands.options import BROKER, STATE, TAGS, WORKER, takes
from stream.commands.topics import refuse_loss
from stream.compiled import hot_path
from stream.domains import discover
from stream.errors import TagstreamError
from stream.rules import load
from stream.settings import Settings, option_of
from stream.topics import CHANGELOG, DAY_MS, tombstones_ms

log = logging.getLogger(__name__)

SHUTDOWN_S = 60.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@takes(*BROKER, *STATE, *TAGS, *WORKER)
def worker(settings: Settings) -> None:
    """Run the service: follow the sources, keep the state, emit every change.

    With no broker configured it runs on the embedded one, keeping its data under the data
    directory; events then come in by POST /events.
    """
    settings.check_processes()
    settings.make_directories()
    log_to_stderr(settings.log_level)
    if settings.processes > 1:
        raise SystemExit(_together(settings))
    domains = discover()
    rules = load(settings.tags, domains)
    for warning in rules.warnings:
        log.warning("%s", warning)
    kept_ms = 7 * DAY_MS
    if not settings.embedded:
        kept_ms = tombstones_ms(refuse_loss(settings).get(settings.topic(CHANGELOG)))
    garbage.relax()
    service = Tagstream(settings, rules, domains, tombstones_ms=kept_ms, watch=True)
    error = asyncio.run(_run(service))
    if isinstance(error, TagstreamError):
        raise error
    if error is not None:
        log.critical("stopped by an unexpected error", exc_info=error)
        raise SystemExit(1)


def _together(settings: Settings) -> int:
    """Run as many processes as are asked for until one ends or we are told to; the exit code."""
    told = False

    def tell(*_: object) -> None:
        nonlocal told
        told = True  # no more: this may fall anywhere

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, tell)
    processes = [_process(settings, index) for index in range(settings.processes)]
    code = 0
    while not (told or code):
        time.sleep(0.1)
        for index, process in enumerate(processes):
            if (ended := process.poll()) is not None and not told:
                log.error("process %d ended with %d: the others are stopped", index, ended)
                code = ended if ended > 0 else 1
    for process in processes:
        process.terminate()
    ends = [process.wait() for process in processes]  # which cut themselves off
    # One that was told before it could hear it ends as any command does.
    return code or max(0 if end in (0, 143, -signal.SIGTERM) else 1 for end in ends)


def _process(settings: Settings, index: int) -> subprocess.Popen[bytes]:
    """Start one of several processes: this command again, with options that win over the rest."""
    options: list[str] = []
    for name, value in settings.of_process(index).items():
        options += option_of(name), value
    return subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:], *options],
        preexec_fn=partial(_end_with, os.getpid(), getattr(ctypes.CDLL(None), "prctl", None)),
        start_new_session=True,  # Ctrl-C is for us, who tell them
    )


def _end_with(parent: int, prctl: Callable[[int, int], object] | None) -> None:
    """Have the kernel send SIGTERM to this process when the one that started it is gone (Linux)."""
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


async def _run(service: Tagstream) -> BaseException | None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    ends = [asyncio.create_task(service.until_stopped()), asyncio.create_task(asked.wait())]
    starting = asyncio.create_task(service.start())
    try:
        await asyncio.wait([starting, *ends], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            log.info("%s", _whereabouts(service))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set():
            log.info("told to stop: what has gathered is committed, partitions are let go")
    finally:
        # From here on nothing but the end may take time: the next owner waits for it.
        cut_off = loop.call_later(SHUTDOWN_S, _cut_off)
        for task in (starting, *ends):
            task.cancel()
        await asyncio.gather(starting, *ends, return_exceptions=True)
        await service.stop()
        cut_off.cancel()
    return service.error


def _whereabouts(service: Tagstream) -> str:
    """Where the data are, where HTTP is, what is computed and how, on one line."""
    settings, web = service.settings, service.web
    folder, here = settings.broker_dir, Path.cwd()
    place = (
        f"embedded broker in {folder.relative_to(here) if folder.is_relative_to(here) else folder}"
        if settings.embedded
        else f"Kafka at {', '.join(settings.bootstrap_servers)}"
    )
    return (
        f"{place}; HTTP on http://{web.host}:{web.port}; tags version {service.rules.version}; "
        f"hot path {hot_path()}"
    )


def _cut_off() -> None:
    log.error("the shutdown took more than %.0f s and is cut off; nothing is lost", SHUTDOWN_S)
    logging.shutdown()
    os._exit(1)


def log_to_stderr(level: str) -> None:
    """One line per message; the libraries' only from warnings on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    # Faust's services announce every start and stop of theirs, each under our modules' names.
    handler.addFilter(lambda record: not str(record.msg).startswith("[^"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("stream", "tables", "agents"):
        logging.getLogger(name).setLevel(level.upper())
