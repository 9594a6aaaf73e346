"""A folder for work that takes long: it knows whose it is, and a killed process is gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from vlm_lens.errors import VLMLensError
from vlm_lens.storage.files import FileError, as_path, read_json, remove_rests, write_whole

_FORMAT = "vlm_lens.folder/1"
_LOCK = ".lock"
MANIFEST = "manifest.json"


class FolderError(FileError):
    """A folder that holds something else, or at which another process is at work."""


class RunFolder:
    """A folder that belongs to one run, told by its manifest, and to one process at a time.

    Use it as a context manager: the folder is this process's until the block ends, or the process
    does. One that cannot be written to can still be read, if it holds this run.

    Args:
        path: The folder; it is made.
        identity: What the results in it depend on: JSON data by name. Another value of any of them
            is another run.
        holds: What it holds, for messages: `"a sweep"`.
        about: Further facts to write into the manifest; they are not compared.
        error: The class of the errors about the folder.

    Raises:
        VLMLensError: It holds another run or other files, or another process is at work there.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        holds: str,
        about: Mapping[str, Any] | None = None,
        error: type[VLMLensError] = FolderError,
    ):
        self.path = as_path(path, error)
        self._holds, self._error = holds, error
        self._identity = json.loads(json.dumps(identity))
        self._about = dict(about or {})
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        writable = self._own()
        try:
            if (self.path / MANIFEST).exists():
                self.check()
            else:
                self._begin(writable)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes work in the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def check(self) -> None:
        """Checks the manifest of a folder that is there, without taking it for this process.

        Raises:
            VLMLensError: It holds another run, or something else.
        """
        try:
            there = read_json(self.path / MANIFEST)
        except FileError as error:
            raise self._error(f"{error} Give another folder, or delete this one.") from None
        held = there.get("holds") if isinstance(there, dict) else None
        if not isinstance(there, dict) or there.get("format") != _FORMAT or held != self._holds:
            raise self._error(
                f"{self.path} holds {held or 'something else'}, not {self._holds}: give another "
                "folder."
            )
        told = differences(there["identity"], self._identity)
        if told:
            raise self._error(
                f"{self.path} holds {self._holds} with another {' and '.join(told)}: give another "
                "folder, or delete this one."
            )

    def must_be_writable(self) -> None:
        """Says, before work is begun, that its results could not be written.

        Raises:
            VLMLensError: The folder is read-only.
        """
        if self._lock is None:
            raise self._error(f"{self.path} cannot be written to: give another folder.")

    def write(self, name: str, content: Any) -> None:
        """Writes a file whole or not at all; see `write_whole`."""
        write_whole(self.path / name, content)

    def files(self, pattern: str) -> Iterator[Path]:
        """Finished files, in the order of their names."""
        yield from sorted(self.path.glob(pattern))

    def _own(self) -> bool:
        """Takes the folder for this process; false where it cannot be written to."""
        lock = FileLock(self.path / _LOCK)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise self._error(
                f"Another process, or another thread, is at work in {self.path}: wait until it is "
                "done, or give another folder."
            ) from None
        except OSError as error:
            if not self.path.is_dir():
                raise self._error(f"{self.path} cannot be made: {error.strerror}.") from error
            return False
        self._lock = lock
        remove_rests(self.path)
        return True

    def _begin(self, writable: bool) -> None:
        mine = {_LOCK, *(p.name for p in self.path.glob(".*.partial"))}
        if any(path.name not in mine for path in self.path.iterdir()):
            raise self._error(
                f"{self.path} is not empty and holds no manifest of {self._holds}: give another "
                "folder."
            )
        if not writable:
            self.must_be_writable()
        manifest = {"format": _FORMAT, "holds": self._holds, "identity": self._identity}
        self.write(MANIFEST, json.dumps({**manifest, **self._about}, indent=1, ensure_ascii=False))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words: names, and values where these are words."""
    return [
        f"{key}{_told(there.get(key), here.get(key))}"
        for key in {**there, **here}
        if there.get(key) != here.get(key)
    ]


def _told(there: Any, here: Any) -> str:
    if all(isinstance(v, str | int | float | None) and not _is_digest(v) for v in (there, here)):
        return f" ({_said(there)} there, {_said(here)} now)"
    return ""


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 16 and not set(value) - set("0123456789abcdef")


def _said(value: Any) -> str:
    return "none" if value is None else str(value)


__all__ = ["MANIFEST", "FolderError", "RunFolder", "differences"]
