"""Every setting of tagstream, each declared once.

A field of ``Settings`` carries its default, its meaning and what it may hold; the
environment variable (``TAGSTREAM_`` and the name in capitals), the command option
(``--name``) and its help all come from that one declaration. An option wins over the
environment, and an empty value stands for the default.

Bounds: values are checked here one by one and against each other; files and brokers they
name are not opened before somebody needs them.
"""

import difflib
import errno
import os
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlsplit

from stream import data
from stream.errors import SettingError

T = TypeVar("T")
D = TypeVar("D")

PREFIX = "TAGSTREAM_"

LEAST_MB = 64
PROCESS_MB = 150
"""What a worker takes beside ``memory_mb``: Python, the libraries, what every request allocates."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """What a setting may hold: a parser that raises ValueError, and the same in words."""

    parse: Callable[[str], T]
    allowed: str
    metavar: str = "TEXT"


def whole(low: int, high: int) -> Kind[int]:
    """A whole number in ``low..high``, both included."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return int(text)

    return Kind(parse, f"a whole number from {low} to {high}", "NUMBER")


def choice(*values: str) -> Kind[str]:
    """One of ``values``, in capitals or not; comes out as written here."""
    spelled = {value.lower(): value for value in values}

    def parse(text: str) -> str:
        try:
            return spelled[text.lower()]
        except KeyError:
            raise ValueError(text) from None

    return Kind(parse, " or ".join(values), "NAME")


def matching(pattern: str, allowed: str) -> Kind[str]:
    """Text that ``pattern`` matches as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(parse, allowed)


def _expression(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(str(error)) from error


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError(text)
    return Path(text).expanduser()


_HOST = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")


def _broker(text: str) -> str:
    """``kafka://h1:9092;h2:9092`` with every port written out, or ``local://PATH``."""
    scheme, separator, rest = text.partition("://")
    if not separator or not rest:
        raise ValueError(text)
    if scheme == "local":
        return f"local://{_path(rest)}"
    if scheme != "kafka":
        raise ValueError(text)
    hosts = []
    for part in rest.split(";"):
        match = _HOST.fullmatch(part.removeprefix("kafka://"))
        if match is None or not 0 < int(match["port"] or 9092) < 65536:
            raise ValueError(text)
        hosts.append(f"{match['host']}:{match['port'] or 9092}")
    return "kafka://" + ";".join(hosts)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError(text)
    _ = parts.port  # raises ValueError where it is no port
    return text.rstrip("/")


BROKER = Kind(_broker, "kafka://HOST:PORT[;HOST:PORT…] or local://PATH", "URL")
FILE = Kind(_path, "a path", "PATH")
TEXT = matching(r"[^\0\r\n]+", "text on one line")
NAME = matching(r"[A-Za-z0-9._-]{1,200}", "1 to 200 of: letters, digits, '.', '_', '-'")
EXPRESSION = Kind(_expression, "a regular expression; the whole user id has to match it", "REGEX")
URL = Kind(_url, "http://HOST:PORT or https://HOST:PORT", "URL")


def setting(kind: Kind[T], default: D, doc: str, *, panel: str, secret: bool = False) -> T | D:
    """A field of ``Settings``. A secret is no command option and never shown."""
    metadata = {"kind": kind, "doc": doc, "panel": panel, "secret": secret}
    result: T | D = field(default=default, repr=not secret, metadata=metadata)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What one process of tagstream runs with. ``Settings.load`` reads and checks it.

    >>> Settings.load({"partitions": "4"}, {"TAGSTREAM_TOPIC_PREFIX": "eu."}).topic("purchases")
    'eu.purchases'
    """

    broker: str | None = setting(
        BROKER,
        None,
        "The broker: kafka://HOST:PORT[;…], or local://PATH for the embedded one. Unset: the "
        "embedded broker, under the data directory.",
        panel="Broker",
    )
    topic_prefix: str = setting(
        NAME, "", "Stands before the name of every topic and of the group.", panel="Broker"
    )
    partitions: int = setting(
        whole(1, 10_000),
        8,
        "Partitions of every topic. Fixed for the life of the topics.",
        panel="Broker",
    )
    partitioner: str = setting(
        choice("murmur2", "crc32"),
        "murmur2",
        "How the producers of the sources choose a partition: murmur2 as Java clients and "
        "aiokafka do, crc32 as librdkafka clients do by default.",
        panel="Broker",
    )
    replication: int | None = setting(
        whole(1, 100),
        None,
        "Replicas of each topic that 'topics' creates. Unset: 3, or one per broker where there "
        "are fewer brokers.",
        panel="Topics",
    )
    security_protocol: str = setting(
        choice("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
        "PLAINTEXT",
        "How to talk to the broker: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.",
        panel="Broker security",
    )
    sasl_mechanism: str = setting(
        choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
        "PLAIN",
        "How to log in: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.",
        panel="Broker security",
    )
    sasl_username: str | None = setting(
        TEXT, None, "The name to log in with.", panel="Broker security"
    )
    sasl_password: str | None = setting(
        TEXT,
        None,
        "The password to log in with. A variable only: other users can read command lines.",
        panel="Broker security",
        secret=True,
    )
    sasl_password_file: Path | None = setting(
        FILE, None, "A file whose first line is the password.", panel="Broker security"
    )
    ssl_cafile: Path | None = setting(
        FILE,
        None,
        "Certificates (PEM) to trust the broker by. Unset: the system's.",
        panel="Broker security",
    )
    ssl_certfile: Path | None = setting(
        FILE, None, "Our own certificate (PEM).", panel="Broker security"
    )
    ssl_keyfile: Path | None = setting(
        FILE, None, "The key of our own certificate (PEM).", panel="Broker security"
    )
    data_dir: Path = setting(
        FILE, Path("data"), "Where state is kept, and the embedded broker.", panel="State"
    )
    memory_mb: int = setting(
        whole(LEAST_MB, 1_048_576),
        256,
        "MiB for RocksDB, users in memory and buffers together; the process takes about "
        f"{PROCESS_MB} more.",
        panel="State",
    )
    memory_limit_mb: int | None = setting(
        whole(1, 100_000_000),
        None,
        "MiB that whatever runs the process lets it have, a container's limit: it does not start "
        "where they cannot be enough. Unset: not compared.",
        panel="State",
    )
    flush_ms: int = setting(
        whole(1, 60_000),
        250,
        "The longest that a result waits under load, in milliseconds.",
        panel="State",
    )
    tags: Path = setting(
        FILE, data.TAGS, "The definitions, a YAML file. Unset: the packaged ones.", panel="Tags"
    )
    time: str = setting(
        choice("wall", "events"),
        "wall",
        "What moves time when no event comes: the wall clock (wall), or nothing (events).",
        panel="Tags",
    )
    erase_key_file: Path | None = setting(
        FILE,
        None,
        "A file with the secret (at most 64 bytes) that marks of erased users are made with; the "
        "same on all workers, for ever. Unset: who has the state can test it for a user id.",
        panel="State",
    )
    user_id_pattern: re.Pattern[str] | None = setting(
        EXPRESSION,
        None,
        "Events of a user whose id does not match this as a whole are dead-lettered.",
        panel="Tags",
    )
    web_host: str = setting(
        NAME,
        "127.0.0.1",
        "The address that HTTP listens on. Anyone who reaches it can read tags: 0.0.0.0 only "
        "behind a network policy.",
        panel="Worker",
    )
    web_port: int = setting(
        whole(0, 65_535), 6066, "The port that HTTP listens on; 0: any free one.", panel="Worker"
    )
    metrics_port: int | None = setting(
        whole(0, 65_535),
        None,
        "A port for the metrics alone, so that who may scrape need not reach users' tags; 0: any "
        "free one. Unset: they are on the port of HTTP only.",
        panel="Worker",
    )
    url: str | None = setting(
        URL,
        None,
        "How others reach this worker's HTTP. Unset: from the host name and the port.",
        panel="Worker",
    )
    instance_id: str | None = setting(
        NAME,
        None,
        "A name that this worker keeps over restarts, as a pod's: it gets its partitions back.",
        panel="Worker",
    )
    processes: int = setting(
        whole(1, 64),
        1,
        "On a machine with several cores, processes that share one worker's part: each follows "
        "partitions of its own on a core of its own, under the ports after the one given, in a "
        "directory of its own, with an equal share of the memory. More than 1 needs Kafka.",
        panel="Worker",
    )
    session_timeout_ms: int = setting(
        whole(6_000, 1_800_000),
        45_000,
        "A worker that is silent for so long loses its partitions, in milliseconds.",
        panel="Worker",
    )
    log_level: str = setting(
        choice("DEBUG", "INFO", "WARNING", "ERROR"),
        "INFO",
        "How much to log: DEBUG, INFO, WARNING or ERROR.",
        panel="Worker",
    )

    @classmethod
    def load(
        cls, options: Mapping[str, str | None], environ: Mapping[str, str] = os.environ
    ) -> "Settings":
        """The settings that ``options`` (by field name; None: not given) and ``environ`` hold.

        Raises:
            SettingError: a value is not allowed; one line with variable, value and what is.
        """
        values: dict[str, Any] = {}
        for declared in fields(cls):
            name, variable = declared.name, variable_of(declared.name)
            given = options.get(name)
            text, place = (
                (environ.get(variable), variable)
                if given is None
                else (given, f"{option_of(name)} ({variable})")
            )
            if text:
                values[name] = _parse(declared, text, place)
        loaded = cls(**values)
        loaded._check_login()
        loaded._check_memory()
        return loaded

    def _check_memory(self) -> None:
        """A worker that its container will kill for its memory is better not started."""
        # Several are started by one more.
        beside_mb = PROCESS_MB * (self.processes + 1 if self.processes > 1 else 1)
        if self.memory_limit_mb is not None and self.memory_limit_mb < self.memory_mb + beside_mb:
            whom = "the process" if self.processes == 1 else f"{self.processes} processes"
            raise SettingError(
                f"TAGSTREAM_MEMORY_MB holds '{self.memory_mb}', which with {beside_mb} for "
                f"{whom} is more than TAGSTREAM_MEMORY_LIMIT_MB, '{self.memory_limit_mb}'; "
                f"allowed: at most the limit less {beside_mb}"
            )

    def check_processes(self) -> None:
        """Several processes cannot share everything, nor is everything large enough to be shared.

        Raises:
            SettingError: something is not.
        """
        number = self.processes
        if number == 1:
            return
        if self.embedded:
            raise SettingError(
                f"TAGSTREAM_PROCESSES holds '{number}', but the embedded broker is one process's; "
                "allowed: 1, or TAGSTREAM_BROKER with a kafka:// address"
            )
        if self.memory_mb // number < LEAST_MB:
            raise SettingError(
                f"TAGSTREAM_MEMORY_MB holds '{self.memory_mb}', which is too little for "
                f"{number} processes; allowed: at least {LEAST_MB * number}"
            )
        for name, port in (("web_port", self.web_port), ("metrics_port", self.metrics_port)):
            if port is not None and port + number > 65_536:
                raise SettingError(
                    f"{variable_of(name)} holds '{port}', and so many ports do not follow it; "
                    f"allowed: at most {65_536 - number} with {number} processes"
                )
        if self.metrics_port and abs(self.metrics_port - self.web_port) < number:
            raise SettingError(
                f"TAGSTREAM_METRICS_PORT holds '{self.metrics_port}', which is a process's port "
                f"for HTTP; allowed: {number} ports apart from TAGSTREAM_WEB_PORT or more"
            )
        if self.url is not None and urlsplit(self.url).port is None:
            raise SettingError(
                f"TAGSTREAM_URL holds '{self.url}', which has no port that others could follow; "
                f"allowed: one with a port, with {number} processes"
            )

    def of_process(self, index: int) -> dict[str, str]:
        """What is different for one of several processes, by the name of the setting."""
        different: dict[str, object] = {
            "processes": 1,
            "data_dir": self.data_dir / f"process-{index}",
            "memory_mb": self.memory_mb // self.processes,
        }
        for name, port in (("web_port", self.web_port), ("metrics_port", self.metrics_port)):
            if port:
                different[name] = port + index
        if self.url is not None:
            url = urlsplit(self.url)
            port = (url.port or 0) + index
            different["url"] = url._replace(
                netloc=f"{url.netloc.rpartition(':')[0]}:{port}"
            ).geturl()
        if self.instance_id is not None:
            different["instance_id"] = f"{self.instance_id}-{index}"
        return {name: str(value) for name, value in different.items()}

    def _check_login(self) -> None:
        """Settings that make sense only together, or only one of them."""
        sasl = self.security_protocol.startswith("SASL_")
        login = (self.sasl_username, self.sasl_password, self.sasl_password_file)
        if sasl and (self.sasl_username is None or login[1:] == (None, None)):
            raise SettingError(
                f"TAGSTREAM_SECURITY_PROTOCOL holds '{self.security_protocol}', which needs "
                "TAGSTREAM_SASL_USERNAME and TAGSTREAM_SASL_PASSWORD_FILE (or _PASSWORD)"
            )
        if not sasl and any(login):
            raise SettingError(
                f"TAGSTREAM_SECURITY_PROTOCOL holds '{self.security_protocol}', which uses no "
                "login; with TAGSTREAM_SASL_… set it has to be SASL_SSL or SASL_PLAINTEXT"
            )
        if self.sasl_password and self.sasl_password_file:
            raise SettingError(
                "TAGSTREAM_SASL_PASSWORD and TAGSTREAM_SASL_PASSWORD_FILE are both set; "
                "allowed: one of them"
            )
        tls = self.security_protocol.endswith("SSL")
        if not tls and (self.ssl_cafile or self.ssl_certfile or self.ssl_keyfile):
            raise SettingError(
                f"TAGSTREAM_SECURITY_PROTOCOL holds '{self.security_protocol}', which uses no "
                "certificates; with TAGSTREAM_SSL_… set it has to be SSL or SASL_SSL"
            )
        if self.ssl_keyfile and not self.ssl_certfile:
            raise SettingError("TAGSTREAM_SSL_KEYFILE is set without TAGSTREAM_SSL_CERTFILE")

    @property
    def embedded(self) -> bool:
        """Whether the broker runs inside this process."""
        return self.broker is None or self.broker.startswith("local://")

    @property
    def broker_dir(self) -> Path:
        """The embedded broker's directory, absolute."""
        path = Path(self.broker.removeprefix("local://")) if self.broker else self.data_dir / "log"
        return path.absolute()

    @property
    def faust_broker(self) -> str:
        """The URL by which Faust finds our transport; a path in it is quoted."""
        if self.broker is None or self.embedded:
            # What was applied may go: an embedded source would grow for ever.
            return f"local://{quote(str(self.broker_dir))}?free=applied"
        return "tagstream-kafka" + self.broker.removeprefix("kafka")

    @property
    def bootstrap_servers(self) -> list[str]:
        """``host:port`` of each broker that was named; empty on the embedded one."""
        if self.broker is None or self.embedded:
            return []
        return self.broker.removeprefix("kafka://").split(";")

    @property
    def worker_url(self) -> str:
        """How other workers reach this one."""
        if self.url is not None:
            return self.url
        everywhere = self.web_host in ("0.0.0.0", "::")
        return f"http://{socket.gethostname() if everywhere else self.web_host}:{self.web_port}"

    def topic(self, name: str) -> str:
        """The full name of one of our topics."""
        return self.topic_prefix + name

    def make_directories(self) -> None:
        """Have the data directory, and the embedded broker's, ready to be written.

        Raises:
            SettingError: one cannot be.
        """
        make_directory(self.data_dir, variable_of("data_dir"))
        if self.broker is not None and self.embedded:
            make_directory(self.broker_dir, variable_of("broker"))

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS as set, certificates read anew at every call; None where it is not used.

        Raises:
            SettingError: a file cannot be read or holds no certificate.
        """
        if not self.security_protocol.endswith("SSL"):
            return None
        try:
            context = ssl.create_default_context(cafile=self.ssl_cafile)
        except OSError as error:
            raise SettingError(_unreadable("ssl_cafile", self.ssl_cafile, error)) from error
        if self.ssl_certfile:
            try:
                context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
            except OSError as error:
                raise SettingError(_unreadable("ssl_certfile", self.ssl_certfile, error)) from error
        return context

    def password(self) -> str | None:
        """The password to log in with, its file read anew at every call.

        Raises:
            SettingError: the file cannot be read, or is empty.
        """
        if self.sasl_password_file is None:
            return self.sasl_password
        try:
            first = self.sasl_password_file.read_text("utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError) as error:
            message = _unreadable("sasl_password_file", self.sasl_password_file, error)
            raise SettingError(message) from error
        if not first:
            raise SettingError(
                f"TAGSTREAM_SASL_PASSWORD_FILE holds '{self.sasl_password_file}', whose first "
                "line is empty; allowed: a file that begins with the password"
            )
        return first

    def erase_key(self) -> bytes:
        """The secret of ``erase_key_file``, read anew at every call; empty where there is none.

        Raises:
            SettingError: the file cannot be read, is empty, or holds more than 64 bytes.
        """
        path = self.erase_key_file
        if path is None:
            return b""
        try:
            key = path.read_bytes().strip()
        except OSError as error:
            raise SettingError(_unreadable("erase_key_file", path, error)) from error
        if not 0 < len(key) <= 64:
            raise SettingError(
                f"TAGSTREAM_ERASE_KEY_FILE holds '{path}', whose content has {len(key)} bytes; "
                "allowed: 1 to 64"
            )
        return key

    def client_options(self) -> dict[str, Any]:
        """What every aiokafka client needs to reach the broker: addresses, TLS and login."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap_servers,
            "security_protocol": self.security_protocol,
            "ssl_context": self.ssl_context(),
        }
        if self.security_protocol.startswith("SASL_"):
            options |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_username,
                "sasl_plain_password": self.password(),
            }
        return options


def variable_of(name: str) -> str:
    """The environment variable of the field ``name``."""
    return PREFIX + name.upper()


def option_of(name: str) -> str:
    """The command option of the field ``name``."""
    return "--" + name.replace("_", "-")


def make_directory(path: Path, place: str) -> None:
    """Make the directory that ``place``, a variable or an option, holds, if it is missing.

    Raises:
        SettingError: it cannot be made, or not be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise SettingError(
            f"{place} holds '{path}', which cannot be used: {error.strerror}; allowed: a directory"
            " that can be written"
        ) from error


def unknown_variables(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One line for each ``TAGSTREAM_…`` variable that sets nothing.

    Those that Kubernetes puts into every container for a Service whose name begins with
    "tagstream" are nobody's mistake and are passed over.
    """
    known = [declared.name.upper() for declared in fields(Settings)]
    lines = []
    for variable, value in sorted(environ.items()):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in known or _of_a_service(variable, value):
            continue
        guesses = difflib.get_close_matches(name, known, n=1)
        hint = f": did you mean {PREFIX}{guesses[0]}?" if guesses else ""
        lines.append(f"{variable} is no setting{hint}")
    return lines


_SERVICE = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?$")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


def _of_a_service(variable: str, value: str) -> bool:
    return bool(_SERVICE.search(variable) or _SERVICE_URL.match(value))


def _parse(declared: Field[Any], text: str, place: str) -> object:
    kind: Kind[object] = declared.metadata["kind"]
    try:
        return kind.parse(text)
    except ValueError:
        held = "a value that is not shown" if declared.metadata["secret"] else repr(text)
        hint = (
            "; Kubernetes sets it for a Service of that name: enableServiceLinks: false"
            if _SERVICE_URL.match(text)
            else ""
        )
        raise SettingError(f"{place} holds {held}; allowed: {kind.allowed}{hint}") from None


def _unreadable(name: str, path: Path | None, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{variable_of(name)} holds '{path}', which cannot be used: {reason}"
