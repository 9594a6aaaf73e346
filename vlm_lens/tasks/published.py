"""Data laid out as the authors of Luo et al. 2025 publish theirs, in a folder or on the Hub.

`annotations/{task}_{val|test}.json` are lists of objects with `input`, `image` and `output`, and
the paths of pictures start beside `annotations`. On the Hub both are archives, `annotations.zip`
and `images.zip`; those are read without being unpacked.
"""

from __future__ import annotations

import json
import os
import zipfile
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath, PureWindowsPath

from vlm_lens.tasks.rows import Row, TaskError
from vlm_lens.tasks.sources import Splits, numbered_row

__all__ = ["Published", "fetch", "find", "read", "task_names"]

_PATTERNS = [
    f"{start}{part}" for start in ("", "data/") for part in ("annotations*", "images*")
] + [f"{start}{part}/**" for start in ("", "data/") for part in ("annotations", "images")]


@dataclass(frozen=True)
class Published:
    """Where the parts of such data are.

    Attributes:
        folder: The folder that was given.
        annotations: Where the JSON files are: a folder, or a place in an archive.
        pictures: Where paths of pictures may start.
    """

    folder: Path
    annotations: Traversable
    pictures: tuple[Traversable, ...]

    def picture(self, path: str) -> Traversable:
        """The file of a picture, by its path in the annotations.

        Returns:
            The file; where there is none, the first place at which it could have been.

        Raises:
            TaskError: It leads out of the data: an absolute path, `..`, or a link to elsewhere.
        """
        parts = _checked(path)
        inside = (
            parts[1:] if parts[:1] == ("images",) else parts
        )  # an archive of the folder's files
        places = [_at(start, p) for start in self.pictures for p in (parts, inside) if p]
        return self._inside(next((place for place in places if place.is_file()), places[0]))

    def _inside(self, place: Traversable) -> Traversable:
        """A place, if it is within the data; in the Hub's cache files are links to its blobs."""
        if isinstance(place, Path):
            real, root = place.resolve(), self.folder.resolve()
            blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
            if not real.is_relative_to(root) and not real.is_relative_to(blobs):
                raise TaskError(f"{place} is a link that leads out of {root}, and is not opened")
        return place


def find(folder: Path) -> Published:
    """Find annotations and pictures in a folder, or in its folder `data`.

    Args:
        folder: The folder.

    Returns:
        Where they are.

    Raises:
        TaskError: There are no annotations, or an archive is damaged.
    """
    for base in (folder, folder / "data"):
        archive = base / "annotations.zip"
        if (base / "annotations").is_dir():
            annotations: Traversable = base / "annotations"
        elif archive.is_file():
            annotations = _inside(archive, "annotations")
        else:
            continue
        pictures: list[Traversable] = [base]
        if (base / "images.zip").is_file():
            pictures.append(_open(base / "images.zip"))
        return Published(folder, annotations, tuple(pictures))
    raise TaskError(
        f"{folder} holds no folder 'annotations' and no 'annotations.zip', here or in 'data'"
        if folder.is_dir()
        else f"there is no folder {folder}"
    )


def task_names(data: Published) -> tuple[str, ...]:
    """Return the names of the tasks that have both `{name}_val.json` and `{name}_test.json`.

    Args:
        data: Where the data is.
    """
    there = {path.name for path in data.annotations.iterdir()}
    names = sorted(name.removesuffix("_val.json") for name in there if name.endswith("_val.json"))
    return tuple(name for name in names if f"{name}_test.json" in there)


def read(data: Published, name: str, *, width: int | None) -> Splits:
    """Return the rows of a task.

    Args:
        data: Where the data is.
        name: The task's name.
        width: As in `Row`.

    Returns:
        The validation rows and the test rows.

    Raises:
        TaskError: A file, a key or a picture is missing or wrong.
    """
    validation, test = (_rows(data, name, stem, width) for stem in ("val", "test"))
    return validation, test


def fetch(
    repo: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Fetch a data set from the Hub, or find it in the cache.

    Args:
        repo: Its id, `owner/name`.
        revision: A branch, tag or commit.
        cache_dir: Where the cache is; Hugging Face's own if None.
        local_files_only: Whether to look in the cache alone.

    Returns:
        The folder of the snapshot.

    Raises:
        TaskError: It is neither in the cache nor to be had.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = local_files_only or constants.HF_HUB_OFFLINE
    try:
        return Path(
            snapshot_download(
                repo,
                repo_type="dataset",
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=offline,
                allow_patterns=_PATTERNS,
            )
        )
    except LocalEntryNotFoundError as error:
        why = "this run is offline" if offline else "the Hub cannot be reached"
        at = f" at revision {revision}" if revision else ""
        raise TaskError(
            f"the data set {repo!r}{at} is not in the cache "
            f"({cache_dir or constants.HF_HUB_CACHE}), and {why}. With a network, "
            f"`hf download {repo} --repo-type dataset` puts it there; a copy of its files can be "
            "read with Task.from_folder."
        ) from error
    except RevisionNotFoundError as error:
        raise TaskError(f"the data set {repo!r} has no revision {revision!r}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise TaskError(
            f"the Hub has no data set {repo!r} that can be read; write 'owner/name', and log in "
            f"with `hf auth login` if it is private. ({str(error).splitlines()[0]})"
        ) from error


def _rows(data: Published, name: str, stem: str, width: int | None) -> tuple[Row, ...]:
    path = _at(data.annotations, (f"{name}_{stem}.json",))
    if not path.is_file():
        raise TaskError(
            f"there is no {path}; tasks found there: {list(task_names(data)) or 'none'}"
        )
    path = data._inside(path)
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # no JSON, or not in UTF-8
        raise TaskError(f"{path} is not JSON in UTF-8: {error}") from error
    if isinstance(records, dict):
        records = records.get("data")
    if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
        raise TaskError(f"{path} holds no list of objects, alone or under 'data'")
    rows = []
    for i, record in enumerate(records):
        missing = [key for key in ("input", "output") if key not in record]
        if missing:
            raise TaskError(f"{path}, object {i} lacks {missing}; it has {sorted(record)}")
        image = record.get("image")
        place = f"{path}, object {i}"
        try:
            picture = data.picture(image) if image else None
        except TaskError as error:
            raise TaskError(f"{place}: {error}") from error
        rows.append(numbered_row(place, record["input"], picture, record["output"], None, width))
    return tuple(rows)


def _checked(path: object) -> tuple[str, ...]:
    """The parts of a picture's path."""
    if not isinstance(path, str) or "\0" in path:
        raise TaskError(f"the path of a picture is a text, not {path!r}")
    if PureWindowsPath(path).is_absolute() or PureWindowsPath(path).drive or path.startswith("/"):
        raise TaskError(f"the path of a picture, {path!r}, is absolute: it must lie in the data")
    parts = PurePosixPath(path.replace("\\", "/")).parts
    if ".." in parts:
        raise TaskError(f"the path of a picture, {path!r}, leads out of the data")
    return parts


def _open(archive: Path) -> zipfile.Path:
    try:
        return zipfile.Path(archive)
    except (zipfile.BadZipFile, OSError) as error:
        raise TaskError(f"{archive} is no archive that can be read: {error}") from error


def _inside(archive: Path, folder: str) -> Traversable:
    root = _open(archive)
    inner = root / folder
    return inner if inner.is_dir() else root


def _at(start: Traversable, parts: tuple[str, ...]) -> Traversable:
    for part in parts:
        start = start / part
    return start
