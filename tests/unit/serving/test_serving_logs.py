"""How log lines look."""

import json
import logging
import sys

import pytest
from aimass_serving.config import LogConfig
from aimass_serving.errors import BadConfig
from aimass_serving.logs import JsonLines, TextLines, configure_logging


def record(**fields: object) -> logging.LogRecord:
    made = logging.LogRecord("n", logging.INFO, "f.py", 1, "request", None, None)
    made.created, made.msecs, made.fields = 0.25, 250.0, fields
    return made


def test_json_line_is_one_object() -> None:
    line = JsonLines().format(record(status="OK", ms=1.5, reason="a\nb"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "info",
        "logger": "n",
        "message": "request",
        "status": "OK",
        "ms": 1.5,
        "reason": "a\nb",
    }


def test_text_line_is_logfmt_and_quotes_what_could_be_mistaken() -> None:
    line = TextLines().format(record(status="OK", note="a b", evil="x\ny=1"))
    assert line == '1970-01-01T00:00:00.250Z info request status=OK note="a b" evil="x\\ny=1"'


def test_exceptions_are_logged_whole() -> None:
    made = record()
    try:
        raise ValueError("why")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonLines().format(made))["exception"]
    assert TextLines().format(made).endswith("ValueError: why")


def test_unknown_level_is_refused() -> None:
    with pytest.raises(BadConfig, match="log_level"):
        configure_logging(LogConfig(log_level="loud"))
