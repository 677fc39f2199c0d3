"""Settings from the environment."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from aimass_serving.config import LogFormat, ServiceConfig, from_env
from aimass_serving.errors import BadConfig
from aimass_serving.session import Device


@dataclass(frozen=True, slots=True)
class EngineSettings:
    max_slots: int = 8
    name: str = ""


def test_defaults_hold_where_nothing_is_set() -> None:
    assert from_env({"PATH": "/bin"}) == ServiceConfig()


def test_every_kind_of_value_is_read() -> None:
    config = from_env(
        {
            "AIMASS_STORE": "s3://bucket",
            "AIMASS_MODELS": "a, b@2,",
            "AIMASS_PORT": "0",
            "AIMASS_REFLECTION": "True",
            "AIMASS_KEEPALIVE_TIME_S": "1.5",
            "AIMASS_TLS_CERT": "/c.pem",
            "AIMASS_DEVICE": "cpu",
            "AIMASS_LOG_FORMAT": "json",
        }
    )
    assert config.store.models == ("a", "b@2")
    assert config.server.port == 0
    assert config.server.reflection
    assert config.server.keepalive_time_s == 1.5
    assert config.server.tls_cert == Path("/c.pem")
    assert config.session.device is Device.CPU
    assert config.log.log_format is LogFormat.JSON


def test_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(BadConfig, match="AIMASS_STORE, got 'AIMASS_STORES'"):
        from_env({"AIMASS_STORES": "x"})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("AIMASS_PORT", "http", "a whole number of at least 0"),
        ("AIMASS_PORT", "-1", "a whole number of at least 0"),
        ("AIMASS_KEEPALIVE_TIME_S", "nan", "a number of at least 0"),
        ("AIMASS_KEEPALIVE_TIME_S", "inf", "a number of at least 0"),
        ("AIMASS_REFLECTION", "maybe", "true or false"),
        ("AIMASS_DEVICE", "tpu", "one of auto, cpu, cuda"),
    ],
)
def test_value_that_does_not_parse_is_refused_by_name(name: str, value: str, expected: str) -> None:
    with pytest.raises(BadConfig, match=f"{name}: expected {expected}, got '{value}'"):
        from_env({name: value})


def test_service_contributes_its_own_settings() -> None:
    config = from_env({"AIMASS_ECHO_MAX_SLOTS": "3"}, service="echo", configs=[EngineSettings])
    assert config.extra == (EngineSettings(max_slots=3),)
    with pytest.raises(BadConfig, match="AIMASS_ECHO_MAX_SLOT"):
        from_env({"AIMASS_ECHO_MAX_SLOT": "3"}, service="echo", configs=[EngineSettings])


def test_settings_of_other_services_and_of_the_client_are_left_to_them() -> None:
    environ = {"AIMASS_OTHER_ANYTHING": "1", "AIMASS_CLIENT_ANYTHING": "1"}
    from_env(environ, service="echo", other_services=["echo", "other"])
    with pytest.raises(BadConfig):
        from_env(environ, service="echo", other_services=["echo"])


def test_override_finds_the_section_of_a_setting() -> None:
    config = ServiceConfig().override({"port": 1, "models": ("a",), "num_threads": 2, "extra": [1]})
    assert (config.server.port, config.store.models, config.session.num_threads) == (1, ("a",), 2)
    assert config.extra == (1,)
    with pytest.raises(BadConfig, match="expected the name of a setting, got 'prot'"):
        ServiceConfig().override({"prot": 1})
