"""The errors that a command reports in one line: user errors, and damaged data.

`spinset` exits with 2 for the first and 3 for the second; any other exception is a fault of spinset itself or of the
machine. All are ValueErrors, so that callers in Python may treat them as the usual ones.
"""

import shlex
from typing import Any


class UserError(ValueError):
    """Something that was given cannot be used; the message states what was given and what would work."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that was given, or that belongs to what was given, does not exist."""


class StorageError(OSError):
    """A storage that is not local cannot be reached or refuses what was asked of it."""


class DamagedData(ValueError):
    """Files of a dataset are missing, cut short or altered; the message names them and the command that repairs them.

    `file` and `problem` are the parts of the message; `member` is the damaged member of a shard and `row` its row in the
    index, where one member is concerned.
    """

    def __init__(self, message: str, file: str = "", problem: str = "", member: str = "", row: int | None = None):
        super().__init__(message)
        self.file, self.problem, self.member, self.row = file, problem, member, row


def first_line(error: BaseException) -> str:
    """The class of an exception and the first line of its message."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def damaged(
    file: str, problem: str, url: str, repair: str = "spinset repair {}", member: str = "", row: int | None = None
) -> DamagedData:
    """The error for a damaged file of the dataset at `url`, or for one member of a shard.

    Args:
        repair: the command that makes the file again, with `{}` in place of the dataset's address.
    """
    where = f"{file}, {member}" if member else file
    return DamagedData(f"{where} {problem}; run {repair.format(shlex.quote(url))}", file, problem, member, row)


def check_ranges(config: Any, prefix: str = "--", /, **bounds: tuple[int | float, int | float]) -> None:
    """Raise UserError if a number of a config is NaN or outside its bounds, which are inclusive; None is not checked.

    Args:
        prefix: beginning of the options that set the fields of this config, such as `--loader.`
        bounds: lower and upper bound by the name of a field, which holds a number or a tuple of numbers.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        for number in value if isinstance(value, tuple) else (value,):
            # Compared so that NaN is refused, too.
            if number is not None and not low <= number <= high:
                option = prefix + name.replace("_", "-")
                raise UserError(f"{option} is {number}; it must be from {low} to {high}")
