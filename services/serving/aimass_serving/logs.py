"""Where log lines go and how they look: standard error, one line each, logfmt or JSON."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

from aimass_serving.config import LogConfig, LogFormat
from aimass_serving.errors import BadConfig

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(config: LogConfig) -> None:
    """Send all log lines of the process to standard error. Raises `BadConfig`."""
    if config.log_level.lower() not in LEVELS:
        raise BadConfig("log_level", expected="one of " + ", ".join(LEVELS), got=config.log_level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if config.log_format is LogFormat.JSON else TextLines())
    logging.basicConfig(level=LEVELS[config.log_level.lower()], handlers=[handler], force=True)


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_line(record, self), ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """Logfmt for people: time, level, message, then `key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        line = _line(record, self)
        head = f"{line.pop('time')} {line.pop('level')} {line.pop('message')}"
        exception = f"\n{line.pop('exception')}" if "exception" in line else ""
        line.pop("logger")
        return " ".join([head, *(f"{key}={_quoted(value)}" for key, value in line.items())]) + exception


def _line(record: logging.LogRecord, formatter: logging.Formatter) -> dict[str, Any]:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    line: dict[str, Any] = {
        "time": f"{seconds}.{int(record.msecs):03d}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    line.update(fields)
    if record.exc_info:
        line["exception"] = formatter.formatException(record.exc_info)
    return line


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
