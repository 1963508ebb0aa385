"""The log of the service: lines for people, or JSON for machines, on stderr."""

import json
import logging
import time
from typing import Any, Literal


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level and message, and what is known of the request."""
        told: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if (request_id := getattr(record, "request_id", None)) is not None:
            told["request_id"] = request_id
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


class TextLines(logging.Formatter):
    """Time and message, then what is known of the request."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, more for a traceback."""
        known = getattr(record, "request", {})
        return super().format(record) + "".join(f" {key}={value}" for key, value in known.items() if value != "")


def set_up_log(kind: Literal["text", "json"]) -> None:
    """Let the log of the service, and the errors of uvicorn, go to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if kind == "json" else TextLines("%(asctime)s %(levelname)s %(message)s"))
    # a form that is broken is the sender's affair
    for name, level in (
        ("mcbeit.serve", logging.INFO),
        ("uvicorn", logging.WARNING),
        ("python_multipart", logging.ERROR),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
