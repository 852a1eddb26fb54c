"""The report of a run on a GPU: one JSON file that is whole at any time, with every check and round so far."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parhelion.files.atomic import write_json


class Record:
    """The report at a path. One process at a time writes it: whoever comes next reads it again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def update(self, values: Mapping[str, Any]) -> None:
        """Set some entries of the report and write it."""
        self.report |= values
        self._write()

    def rows(self, key: str) -> list[dict[str, Any]]:
        """The rows under a key, none so far being an empty list."""
        return self.report.setdefault(key, [])

    def put(self, key: str, row: Mapping[str, Any], *, known_by: str = "name") -> None:
        """Add a row to those under `key`, or put it into the place of the one with the same name; write the report."""
        rows = self.rows(key)
        for place, other in enumerate(rows):
            if other[known_by] == row[known_by]:
                rows[place] = dict(row)
                break
        else:
            rows.append(dict(row))
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.report)


def number(value: float) -> float | None:
    """`value` for JSON, which has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
