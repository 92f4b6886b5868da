"""The kinds of errors that a command reports in one line: a mistake of the user's, and damaged data.

`spinset` exits with 2 for the first and 3 for the second; any other exception is a fault of spinset itself or of the
machine. All are ValueErrors, so that callers in Python may treat them as the usual ones.
"""

import shlex


class UserError(ValueError):
    """Something that was given cannot be used; the message states what was given and what would work."""


class MissingFile(UserError, FileNotFoundError):
    """A file or folder that was given, or that belongs to what was given, does not exist."""


class StorageError(OSError):
    """A storage that is not local cannot be reached or refuses what was asked of it."""


class DamagedData(ValueError):
    """Files of a dataset are missing, cut short or altered; the message names them and the command that repairs them."""

    def __init__(self, message: str, file: str = "", problem: str = ""):
        super().__init__(message)
        self.file, self.problem = file, problem


class BadMember(DamagedData):
    """A member that cannot be read or decoded; says where it is, and of which of the rows asked for."""

    def __init__(self, shard: str, member: str, reason: str, row: int):
        super().__init__(f"{shard}, {member}: {reason}")
        self.shard, self.member, self.reason, self.row = shard, member, reason, row


def damaged(file: str, problem: str, url: str, mend: str = "spinset repair {}") -> DamagedData:
    """The error for a damaged file of the dataset at `url`; `mend` is the command that makes the file again."""
    return DamagedData(f"{file} {problem}; run {mend.format(shlex.quote(url))}", file, problem)
