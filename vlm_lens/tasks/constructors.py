"""Where tasks come from: the package, one's own data, the data of the paper's authors."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Self

from vlm_lens.keywords import Answering, answering
from vlm_lens.tasks import grids, published, registry, sources, word_tasks
from vlm_lens.tasks.rows import Row, TaskError, make_row

__all__ = ["Constructors"]


class Constructors(Answering):
    """The ways to make a `Task`."""

    @staticmethod
    def names() -> tuple[str, ...]:
        """The names of the tasks that ship as tables, the paper's six first.

        `Task.load` knows the drawn ones too, which are `vlm_lens.tasks.GRID_TASKS`.
        """
        return registry.PAPER_TASKS + registry.EXTRA_TASKS

    @classmethod
    @answering
    def load(cls, name: str) -> Self:
        """Load a task of the package.

        Args:
            name: One of `Task.names()`, of `GRID_TASKS`, whose pictures are drawn, or of
                `WORD_TASKS`, which have none.

        Returns:
            The task; the same object each time, so that pictures are opened once.

        Raises:
            TaskError: No shipped task has this name.
        """
        return _load(cls, name)

    @classmethod
    @answering
    def from_rows(
        cls,
        name: str,
        rows: Iterable[Row | tuple[Any, ...]],
        *,
        instruction: str,
        validation: int = 30,
        domain: str = "",
        task_word: str | None = None,
        width: int | None = None,
    ) -> Self:
        """Make a task of one's own data.

        Args:
            name: The task's name.
            rows: Rows, or tuples (input, picture, output) in which the picture is a PIL picture, a
                path or None, and the output a text or a list of texts, the label first.
            instruction: The task in words; in the paper it ends in a colon.
            validation: How many rows, from the first on, are for validation; the rest is for test.
            domain: What the entities are.
            task_word: The one word for the task.
            width: The width to which pictures are brought; None leaves them as they are.

        Returns:
            The task.

        Raises:
            TaskError: A row is wrong or there twice, a picture is missing or no picture, or no
                row is left for test.
        """
        made = []
        for i, row in enumerate(rows):
            if isinstance(row, Row):
                made.append(row)
                continue
            if not isinstance(row, (tuple, list)) or len(row) != 3:
                raise TaskError(f"row {i} of {name!r} is no (input, picture, output): {row!r}")
            made.append(make_row(*row, width=width))
        if not 0 <= validation <= len(made):
            raise TaskError(
                f"validation={validation}, but {name!r} has {len(made)} rows; "
                "pass how many of them are for validation"
            )
        splits = tuple(made[:validation]), tuple(made[validation:])
        task = cls(name, instruction, *splits, domain=domain, task_word=task_word)
        return _with_test_rows(task, f"validation={validation}")

    @classmethod
    @answering
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        instruction: str,
        name: str | None = None,
        images: str | os.PathLike[str] | None = None,
        validation: int | None = None,
        domain: str = "",
        task_word: str | None = None,
        width: int | None = None,
    ) -> Self:
        """Read a task from a CSV file with the columns of the shipped tables.

        Args:
            path: The file: columns `input` and `output`, and where wanted `image`, `aliases` (with
                `|` between them) and `split` (`validation` or `test`).
            instruction: The task in words.
            name: The task's name; the file's stem if None.
            images: Where the paths of the pictures start; the CSV file's folder if None.
            validation: Without a `split` column, how many rows from the top are for validation;
                by default 30, or half of fewer than 60.
            domain: What the entities are.
            task_word: The one word for the task.
            width: The width to which pictures are brought; None leaves them as they are.

        Returns:
            The task.

        Raises:
            TaskError: The file, a column, a value or a picture is missing or wrong, or no row is
                left for test.
        """
        path = Path(path)
        splits = sources.read_csv(
            path,
            images=None if images is None else Path(images),
            validation=validation,
            width=width,
        )
        task = cls(name or path.stem, instruction, *splits, domain=domain, task_word=task_word)
        return _with_test_rows(task, f"validation={validation} (or a column split)")

    @classmethod
    @answering
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        instruction: str | None = None,
        domain: str | None = None,
        task_word: str | None = None,
        width: int | None = 224,
    ) -> Self:
        """Read a task from a folder as the paper's authors publish their data.

        Args:
            folder: The folder with `annotations/{name}_{val|test}.json`; the paths of the pictures
                start at the folder. `annotations.zip` and `images.zip` are read as they are, here
                or in a folder `data`.
            name: The task's name; may be left out where the folder holds one task only.
            instruction: The task in words; known for the names of the shipped tasks.
            domain: What the entities are; known for the names of the shipped tasks.
            task_word: The one word for the task; known for the names of the shipped tasks.
            width: The width to which pictures are brought, 224 as in the paper.

        Returns:
            The task.

        Raises:
            TaskError: A file, a key, the instruction or a picture is missing or wrong.
        """
        data = published.find(Path(folder))
        if name is None:
            found = published.task_names(data)
            if len(found) != 1:
                listed = ", ".join(found) or "none"
                raise TaskError(f"say which task of {folder} is meant; found: {listed}")
            name = found[0]
        known = registry.SPECS.get(name)
        if instruction is None and known is None:
            raise TaskError(f"{name!r} is no shipped task: pass instruction='...:'")
        return cls(
            name,
            instruction if instruction is not None else known.instruction,
            *published.read(data, name, width=width),
            domain=domain if domain is not None else (known.domain if known else ""),
            task_word=task_word if task_word is not None else (known.task_word if known else None),
        )

    @classmethod
    @answering
    def from_hub(
        cls,
        repo: str,
        name: str | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Read a task from a data set on the Hub that is laid out as the paper's authors do.

        Its files are fetched once and then found in Hugging Face's cache, also offline. Archives
        are read as they are and never unpacked.

        Args:
            repo: The data set's id, such as `"g-luo/task_vectors_are_cross_modal"`.
            name: The task's name; may be left out where the data set holds one task only.
            revision: A branch, tag or commit.
            cache_dir: Where the cache is; Hugging Face's own if None.
            local_files_only: Whether to look in the cache alone.
            **options: `instruction`, `domain`, `task_word` and `width` of `from_folder`.

        Returns:
            The task.

        Raises:
            TaskError: The data set cannot be had, or what it holds is wrong.
        """
        folder = published.fetch(
            repo, revision=revision, cache_dir=cache_dir, local_files_only=local_files_only
        )
        return cls.from_folder(folder, name, **options)


@cache
def _load(cls: type, name: str) -> Any:
    spec = registry.spec(name)
    if name in registry.GRID_TASKS:
        splits = grids.rows(name)
    elif name in registry.WORD_TASKS:
        splits = word_tasks.rows(name)
    else:
        splits = sources.read_package(name)
    return cls(name, spec.instruction, *splits, domain=spec.domain, task_word=spec.task_word)


def _with_test_rows(task: Any, by: str) -> Any:
    if not task.test:
        raise TaskError(
            f"{task.name!r} has {len(task)} rows, all of them for validation by {by}, and none for "
            "test: give fewer for validation"
        )
    return task
