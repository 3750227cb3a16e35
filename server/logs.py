"""How log lines are written: text, or JSON, one object a line with the same fields.

A line's fields (`extra=fields(...)`) are in its text already; as JSON they are keys of their own,
so that nobody parses text. Both processes write in the format of the API process. Knows `logging`
and nothing of what is logged; what may not be in a log is left out where it is logged.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: str | int, form: LogFormat) -> None:
    """One line an event, on standard error, from this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level, handlers=[handler])


def configured() -> LogFormat:
    """The format of this process, for those that it starts."""
    handlers = logging.getLogger().handlers
    return "json" if any(isinstance(each.formatter, JsonLines) for each in handlers) else "text"


def fields(**given: object) -> dict[str, Any]:
    """`extra` of a log call: what a line says, by name. What is None is left out."""
    return {"fields": {name: value for name, value in given.items() if value is not None}}


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, then its fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is one string of it."""
        written = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        written |= getattr(record, "fields", {})
        if record.exc_info:
            written["traceback"] = self.formatException(record.exc_info)
        return json.dumps(written, ensure_ascii=False, default=str)
