"""The rows of an evaluation, one line per person: what was done is kept, and the same command goes on after it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.errors import UserError

FILE = "rows.jsonl"


class Rows:
    """A file of JSON lines, the first of which says what all others were made with."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        """Begin a file, or read what an earlier run left.

        Raises:
            ValueError: it was made with other settings; says with which.
        """
        self.file = folder / FILE
        self.rows: dict[str, dict[str, Any]] = {}
        # What JSON makes of tuples, so that both sides compare equal.
        settings = json.loads(json.dumps(settings))
        lines = self._whole_lines() if self.file.exists() else []
        if not lines:
            folder.mkdir(parents=True, exist_ok=True)
            self._append({"settings": settings})
            return
        there = lines[0].get("settings")
        if there is None:
            raise UserError(f"{self.file} is no evaluation; give another --out")
        if different := [name for name in {*there, *settings} if there.get(name) != settings.get(name)]:
            name = min(different)
            raise UserError(
                f"{folder} holds an evaluation with other settings ({name} was {_short(there.get(name))}, is "
                f"{_short(settings.get(name))}); give another --out"
            )
        self.rows = {row["name"]: row for row in lines[1:]}

    def __contains__(self, name: str) -> bool:
        return name in self.rows

    def add(self, row: dict[str, Any]) -> None:
        """Keep the row of one person."""
        self._append(row)
        self.rows[row["name"]] = row

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.file.open("a") as file:
            # NaN and Infinity as Python writes them: these lines are read by us alone.
            file.write(json.dumps(value) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _whole_lines(self) -> list[dict[str, Any]]:
        """The lines, without one that was being written when the run was killed."""
        data = self.file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self.file.write_bytes(whole)
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise UserError(f"{self.file} is damaged ({error}); give another --out") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
