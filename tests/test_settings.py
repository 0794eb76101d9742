"""Settings: what they hold, where they come from, and what a bad one says."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream import data
from stream.errors import SettingError, TagstreamError
from stream.settings import Settings, option_of, unknown_variables, variable_of


def load(environ: dict[str, str] | None = None, **options: str | None) -> Settings:
    """Settings from exactly these variables and options."""
    return Settings.load(options, environ or {})


def test_without_any_variable_the_defaults_of_the_contract_hold():
    """A worker with no setting at all runs embedded, under ./data."""
    settings = load()
    assert settings.embedded
    assert settings.data_dir == Path("data")
    assert settings.tags == data.TAGS
    assert (settings.partitions, settings.partitioner, settings.time) == (8, "murmur2", "wall")
    assert (settings.flush_ms, settings.memory_mb, settings.web_port) == (250, 256, 6066)
    assert settings.topic("purchases") == "purchases"
    assert settings.client_options()["security_protocol"] == "PLAINTEXT"


def test_an_option_wins_over_the_environment_and_an_empty_value_is_the_default():
    """Options, then variables, then defaults."""
    environ = {"TAGSTREAM_PARTITIONS": "4", "TAGSTREAM_WEB_PORT": "", "TAGSTREAM_MEMORY_MB": "512"}
    settings = load(environ, partitions="2", memory_mb="", time=None)
    assert (settings.partitions, settings.web_port, settings.memory_mb) == (2, 6066, 256)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TAGSTREAM_BROKER", "localhost:9092"),
        ("TAGSTREAM_BROKER", "kafka://"),
        ("TAGSTREAM_BROKER", "kafka://host:0"),
        ("TAGSTREAM_BROKER", "kafka://host:70000"),
        ("TAGSTREAM_BROKER", "kafka://user:secret@host:9092"),
        ("TAGSTREAM_BROKER", "kafka://a;;b"),
        ("TAGSTREAM_BROKER", "local://"),
        ("TAGSTREAM_BROKER", "redis://host"),
        ("TAGSTREAM_PARTITIONS", "0"),
        ("TAGSTREAM_PARTITIONS", "8.0"),
        ("TAGSTREAM_PARTITIONS", "eight"),
        ("TAGSTREAM_PARTITIONS", "-1"),
        ("TAGSTREAM_PARTITIONS", "٨"),
        ("TAGSTREAM_PARTITIONER", "random"),
        ("TAGSTREAM_TIME", "clock"),
        ("TAGSTREAM_FLUSH_MS", "0"),
        ("TAGSTREAM_FLUSH_MS", "60001"),
        ("TAGSTREAM_TOPIC_PREFIX", "eu/"),
        ("TAGSTREAM_WEB_PORT", "65536"),
        ("TAGSTREAM_METRICS_PORT", "metrics"),
        ("TAGSTREAM_MEMORY_MB", "1"),
        ("TAGSTREAM_MEMORY_LIMIT_MB", "512Mi"),
        ("TAGSTREAM_INSTANCE_ID", "pod 0"),
        ("TAGSTREAM_USER_ID_PATTERN", "["),
        ("TAGSTREAM_SECURITY_PROTOCOL", "TLS"),
        ("TAGSTREAM_SASL_MECHANISM", "GSSAPI"),
        ("TAGSTREAM_SESSION_TIMEOUT_MS", "5000"),
        ("TAGSTREAM_URL", "worker:6066"),
        ("TAGSTREAM_URL", "http://worker:port"),
        ("TAGSTREAM_LOG_LEVEL", "chatty"),
        ("TAGSTREAM_REPLICATION", "0"),
        ("TAGSTREAM_DATA_DIR", "a\0b"),
    ],
)
def test_a_bad_value_is_one_line_with_variable_value_and_what_is_allowed(variable, value):
    """The contract's three parts, and exit code 2, from the environment and as an option."""
    name = variable.removeprefix("TAGSTREAM_").lower()
    for environ, options in (({variable: value}, {}), ({}, {name: value})):
        with pytest.raises(SettingError) as caught:
            Settings.load(options, environ)
        message = str(caught.value)
        assert variable in message
        assert repr(value) in message
        assert "allowed: " in message
        assert "\n" not in message
        assert caught.value.exit_code == 2


def test_a_port_that_kubernetes_injected_says_so():
    """A Service named tagstream-web sets our own variable: the remedy is in the message."""
    with pytest.raises(SettingError, match="enableServiceLinks: false"):
        load({"TAGSTREAM_WEB_PORT": "tcp://10.0.0.7:6066"})


def test_unknown_variables_are_named_with_a_guess_but_not_those_of_a_service():
    """Typing errors are worth a line; what Kubernetes injects for its Services is not."""
    environ = {
        "TAGSTREAM_PARTITONS": "4",
        "TAGSTREAM_ZZZZZZ": "1",
        "TAGSTREAM_PARTITIONS": "4",
        "TAGSTREAM_SERVICE_HOST": "10.0.0.7",
        "TAGSTREAM_SERVICE_PORT_HTTP": "6066",
        "TAGSTREAM_PORT": "tcp://10.0.0.7:6066",
        "TAGSTREAM_PORT_6066_TCP": "tcp://10.0.0.7:6066",
        "TAGSTREAM_PORT_6066_TCP_ADDR": "10.0.0.7",
        "TAGSTREAM_HEADLESS_PORT_6066_TCP_PROTO": "tcp",
        "PATH": "/bin",
    }
    assert unknown_variables(environ) == [
        "TAGSTREAM_PARTITONS is no setting: did you mean TAGSTREAM_PARTITIONS?",
        "TAGSTREAM_ZZZZZZ is no setting",
    ]


@pytest.mark.parametrize(
    ("broker", "faust", "servers"),
    [
        ("kafka://h", "tagstream-kafka://h:9092", ["h:9092"]),
        ("kafka://h1:1;h2", "tagstream-kafka://h1:1;h2:9092", ["h1:1", "h2:9092"]),
        ("kafka://h1:1;kafka://h2:2", "tagstream-kafka://h1:1;h2:2", ["h1:1", "h2:2"]),
        ("kafka://[::1]:9092", "tagstream-kafka://[::1]:9092", ["[::1]:9092"]),
        ("local:///var/log%20 x", "local:///var/log%2520%20x?free=applied", []),
    ],
)
def test_a_broker_is_read_once_for_all_clients(broker, faust, servers):
    """Faust gets our transports' schemes, every other client the list of servers."""
    settings = load({"TAGSTREAM_BROKER": broker})
    assert settings.faust_broker == faust
    assert settings.bootstrap_servers == servers
    assert settings.embedded is (servers == [])


def test_the_embedded_broker_lives_under_the_data_directory_unless_told_otherwise(tmp_path):
    """An unset broker and a local one differ only in the place."""
    assert load(data_dir=str(tmp_path)).faust_broker == f"local://{tmp_path}/log?free=applied"
    assert load(broker=f"local://{tmp_path}/b").broker_dir == tmp_path / "b"
    assert load(broker="local://b").broker_dir == Path("b").absolute()


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_data_directory_that_cannot_be_one_names_its_variable(name, tmp_path):
    """A file, and a place under one; a directory that is missing is made."""
    made = load(data_dir=str(tmp_path / "new/data"), broker=f"local://{tmp_path}/new/log")
    made.make_directories()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"data", "log"}
    (tmp_path / "file").touch()
    for variable, value in (
        ("TAGSTREAM_DATA_DIR", str(tmp_path / name)),
        ("TAGSTREAM_BROKER", f"local://{tmp_path / name}"),
    ):
        environ = {"TAGSTREAM_DATA_DIR": str(tmp_path / "new"), variable: value}
        with pytest.raises(SettingError, match=f"{variable} holds .*{name}.*that can be written"):
            load(environ).make_directories()


def test_an_address_that_others_can_use_stands_in_for_a_missing_url():
    """0.0.0.0 is an address to listen on, not one to be reached at."""
    assert load(url="http://pod-0:80/").worker_url == "http://pod-0:80"
    assert load().worker_url == "http://127.0.0.1:6066"
    assert "0.0.0.0" not in load(web_host="0.0.0.0").worker_url


def test_a_memory_budget_that_does_not_fit_its_container_is_refused():
    """Better no start than one that ends in being killed for its memory, hours later."""
    assert load(memory_mb="256", memory_limit_mb="406").memory_limit_mb == 406
    with pytest.raises(SettingError, match="TAGSTREAM_MEMORY_MB holds '256'.*'405'; allowed: "):
        load(memory_mb="256", memory_limit_mb="405")
    kafka = {"TAGSTREAM_BROKER": "kafka://b"}
    assert load(kafka, memory_mb="256", memory_limit_mb="706", processes="2").processes == 2
    with pytest.raises(SettingError, match="with 450 for 2 processes is more than"):
        load(kafka, memory_mb="256", memory_limit_mb="705", processes="2")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"broker": "local://log"}, "TAGSTREAM_PROCESSES holds '4', but the embedded broker"),
        ({"memory_mb": "255"}, "TAGSTREAM_MEMORY_MB holds '255', .* allowed: at least 256"),
        ({"web_port": "65533"}, "TAGSTREAM_WEB_PORT holds '65533', .* allowed: at most 65532"),
        ({"metrics_port": "6069"}, "TAGSTREAM_METRICS_PORT holds '6069', .* 4 ports apart"),
        ({"url": "http://here"}, "TAGSTREAM_URL holds 'http://here', which has no port"),
    ],
)
def test_what_several_processes_cannot_share_is_refused(options, reason):
    """Before any of them is started."""
    with pytest.raises(SettingError, match=reason):
        load(**{"broker": "kafka://b", "processes": "4", **options}).check_processes()


def test_only_a_worker_minds_how_many_processes_it_has():
    """Or a variable meant for it would keep other commands from the embedded broker."""
    assert load({"TAGSTREAM_PROCESSES": "4"}).embedded


def test_several_processes_share_memory_and_have_the_rest_to_themselves():
    """Directories, ports and names that no two of them have in common."""
    whole = load(
        broker="kafka://b",
        processes="3",
        memory_mb="300",
        web_port="7000",
        metrics_port="7010",
        instance_id="pod",
        url="http://pod.here:7000",
    )
    whole.check_processes()
    each = [load({}, broker="kafka://b", **whole.of_process(index)) for index in range(3)]
    assert {one.memory_mb for one in each} == {100}
    assert {one.processes for one in each} == {1}
    assert [(one.web_port, one.metrics_port, one.instance_id) for one in each] == [
        (7000, 7010, "pod-0"),
        (7001, 7011, "pod-1"),
        (7002, 7012, "pod-2"),
    ]
    assert [one.url for one in each] == [f"http://pod.here:{7000 + n}" for n in range(3)]
    assert len({one.data_dir for one in each}) == 3


SASL = {
    "TAGSTREAM_SECURITY_PROTOCOL": "sasl_ssl",
    "TAGSTREAM_SASL_USERNAME": "tagstream",
    "TAGSTREAM_SASL_PASSWORD": "hunter2",
}


def test_a_login_reaches_every_client_and_is_never_shown():
    """The password is in the clients' options and in nothing printable."""
    settings = load(SASL)
    options = settings.client_options()
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_plain_password"] == "hunter2"
    assert options["ssl_context"] is not None
    assert "hunter2" not in repr(settings)


def test_a_password_file_is_read_when_it_is_needed(tmp_path):
    """A rotated secret is picked up; a missing or an empty one names the variable."""
    path = tmp_path / "password"
    path.write_text("first\n")
    environ = {**SASL, "TAGSTREAM_SASL_PASSWORD_FILE": str(path)}
    del environ["TAGSTREAM_SASL_PASSWORD"]
    settings = load(environ)
    assert settings.password() == "first"
    path.write_text("second")
    assert settings.password() == "second"
    path.write_text("\n")
    with pytest.raises(SettingError, match="TAGSTREAM_SASL_PASSWORD_FILE holds .* is empty"):
        settings.password()
    path.unlink()
    with pytest.raises(SettingError, match="TAGSTREAM_SASL_PASSWORD_FILE holds .* No such file"):
        settings.password()


@pytest.mark.parametrize(
    "change",
    [
        {"TAGSTREAM_SECURITY_PROTOCOL": "SSL"},
        {"TAGSTREAM_SASL_USERNAME": ""},
        {"TAGSTREAM_SASL_PASSWORD": ""},
        {"TAGSTREAM_SASL_PASSWORD_FILE": "f"},
        {"TAGSTREAM_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "TAGSTREAM_SSL_CAFILE": "ca.pem"},
        {"TAGSTREAM_SSL_KEYFILE": "key.pem"},
        {"TAGSTREAM_SASL_PASSWORD": "two\nlines"},
    ],
)
def test_security_settings_that_contradict_each_other_are_refused(change):
    """A login that would silently not be used is a mistake; no message shows the password."""
    with pytest.raises(SettingError) as caught:
        load({**SASL, **change})
    assert "TAGSTREAM_S" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "two" not in str(caught.value)


@pytest.mark.parametrize("name", ["ssl_cafile", "ssl_certfile"])
def test_certificates_that_cannot_be_used_name_their_variable(name, tmp_path):
    """Missing, and no certificate at all."""
    path = tmp_path / "cert.pem"
    environ = {"TAGSTREAM_SECURITY_PROTOCOL": "SSL", variable_of(name): str(path)}
    for _ in ("missing", "no certificate"):
        with pytest.raises(SettingError, match=variable_of(name)):
            load(environ).client_options()
        path.write_text("nothing of the kind")


@given(
    name=st.sampled_from([declared.name for declared in fields(Settings)]),
    text=st.text(max_size=30),
)
def test_any_text_is_either_taken_or_refused_in_one_line(name, text):
    """No value of any setting ends in anything but a setting or its error."""
    try:
        load({variable_of(name): text})
    except TagstreamError as error:
        assert isinstance(error, SettingError)
        assert len(str(error).splitlines()) == 1


def test_every_setting_says_what_it_is():
    """The declaration is the documentation: no field without one."""
    for declared in fields(Settings):
        assert declared.metadata["doc"].endswith(".")
        assert declared.metadata["kind"].allowed
        assert re.fullmatch(r"--[a-z-]+", option_of(declared.name))
