"""Files that are there whole or not at all, alone or several at once, whenever a process ends."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

from torch import Tensor

from vlm_lens.errors import VLMLensError

_PARTIAL, _WHOLE, _REMOVED = ".partial", ".whole", ".removed"
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "there is no permission to write there",
    errno.EPERM: "there is no permission to write there",
    errno.EEXIST: "a file stands where a folder is needed",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EISDIR: "a folder stands where a file is needed",
    errno.ENOTEMPTY: "a folder stands where a file is needed",
    errno.ENAMETOOLONG: "the name is too long",
}


class FileError(VLMLensError):
    """A file that cannot be written, or that does not hold what it should."""


def as_path(given: Any, error: type[VLMLensError] = FileError) -> Path:
    """A path as a `Path`.

    Raises:
        FileError: It is none.
    """
    try:
        return Path(given)
    except TypeError:
        raise error(f"A path is a text or a Path, not {given!r:.60}.") from None


@contextmanager
def told_writing(path: Path) -> Iterator[None]:
    """Errors of the file system as errors that say which file, and why.

    Raises:
        FileError: The file cannot be written.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
        raise FileError(f"{path} cannot be written: {reason}.") from error
    except SafetensorError as error:
        raise FileError(f"{path} cannot be written: {error}.") from error


def write_whole(path: str | Path, content: str | bytes | Callable[[Path], Any]) -> Path:
    """Writes a file under another name, syncs it, and gives it its own.

    Args:
        path: The file; folders above it are made.
        content: What it holds, text as UTF-8; or a function that writes it to a path.

    Returns:
        The path.

    Raises:
        FileError: The disk is full, the folder read-only, ...; what was there before still is.
    """
    path = Path(path)
    partial = path.with_name(partial_name(path.name))
    with told_writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fill(partial, content)
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        _sync(path.parent)
    return path


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file whole or not at all.

    Raises:
        FileError: It cannot be written.
    """
    from safetensors.torch import save_file

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_whole(path, lambda to: save_file(held, to, metadata=dict(metadata or {})))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file, and its metadata.

    Raises:
        FileError: No such file, or not one that can be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} is not a safetensors file that can be read: {error}.") from None


def read_json(path: str | Path) -> Any:
    """What a JSON file holds.

    Raises:
        FileError: No such file, or it is no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileError(f"There is no file {path}.") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:  # no JSON, or no UTF-8
        raise FileError(f"{path} is not JSON: {error}.") from None


def file_name(name: str) -> str:
    """The name of something, if a file may be called so: no path, nothing hidden.

    Raises:
        FileError: It is a path, or empty, or begins with a dot.
    """
    if not name or name.startswith(".") or set(name) & set("/\\:\0") or name != Path(name).name:
        raise FileError(f"{name!r} cannot be the name of a file: no slashes, no dot in front.")
    return name


def inside(folder: Path, path: Path) -> Path:
    """A path, if what it leads to lies in a folder, links followed.

    Raises:
        FileError: It leads out of the folder.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FileError(f"{path} leads out of {folder}, and is not opened.")
    return path


# ---------------------------------------------------------------------- several files


@contextmanager
def written_together(
    folder: str | Path, name: str, *, remove: Iterable[str] = ()
) -> Iterator[Path]:
    """A folder for files that take their places in `folder` all at once, or not at all.

    The files are written aside and synced; one rename makes them the valid ones; then they are
    moved to their places. A process that is killed before the rename leaves the old files, one
    that is killed after it the new ones: `current` finds them, and the next save moves them.

    Args:
        folder: Where the files are to stand; it is made.
        name: What they are together, one name for each such set in the folder.
        remove: Names of files of an earlier save that go if this one does not write them.

    Yields:
        The folder to write into; files only.

    Raises:
        FileError: They cannot be written; what was there before still is.
    """
    folder = Path(folder)
    partial, whole = folder / partial_name(name), folder / f".{name}{_WHOLE}"
    with told_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _finish(folder, name)
        remove_rests(folder)
        try:
            partial.mkdir()
            yield partial
            made = {path.name for path in partial.iterdir()}
            if taken := [n for n in sorted(made) if (folder / n).is_dir()]:
                raise FileError(f"{folder / taken[0]} is a folder, and a file is to stand there.")
            (partial / _REMOVED).write_text(json.dumps(sorted(set(remove) - made)))
            for path in partial.iterdir():
                _sync(path)
            _sync(partial)
            os.rename(partial, whole)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _sync(folder)
        _finish(folder, name)


def current(path: str | Path, name: str) -> Path:
    """Where a file of a set that was written together is, also after a kill.

    Args:
        path: The file.
        name: The set's, as `written_together` was given.
    """
    path = Path(path)
    moved = path.parent / f".{name}{_WHOLE}" / path.name
    return moved if moved.exists() else path


def remove_rests(folder: Path) -> None:
    """Removes what processes that ended while they wrote have left in a folder."""
    for rest in folder.glob(f".*{_PARTIAL}"):
        *_, host, process, _, _ = f"....{rest.name}".split(".")
        if host == _HOST and process.isdigit() and not _alive(int(process)):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink(missing_ok=True)


def _finish(folder: Path, name: str) -> None:
    """Moves files that are valid already to their places."""
    whole = folder / f".{name}{_WHOLE}"
    if not whole.is_dir():
        return
    removed = whole / _REMOVED
    for old in json.loads(removed.read_text()) if removed.exists() else ():
        (folder / old).unlink(missing_ok=True)
    for path in sorted(whole.iterdir()):
        if path != removed:
            os.replace(path, folder / path.name)
    removed.unlink(missing_ok=True)
    whole.rmdir()
    _sync(folder)


def partial_name(name: str) -> str:
    """A hidden name that no other process uses and that tells whose it is."""
    return f".{name}.{_HOST}.{os.getpid()}.{token_hex(4)}{_PARTIAL}"


def _alive(process: int) -> bool:
    if os.name == "nt":  # there signal 0 is no question, it ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _fill(path: Path, content: str | bytes | Callable[[Path], Any]) -> None:
    if callable(content):
        content(path)
        _sync(path)
        return
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(handle)


__all__ = [
    "FileError",
    "as_path",
    "current",
    "file_name",
    "inside",
    "partial_name",
    "read_json",
    "read_tensors",
    "remove_rests",
    "told_writing",
    "write_tensors",
    "write_whole",
    "written_together",
]
