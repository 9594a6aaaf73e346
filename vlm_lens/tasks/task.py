"""A task: its rows in two splits, what it asks, and the prompts built from them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from vlm_lens.errors import near_matches
from vlm_lens.tasks import registry, show, sources
from vlm_lens.tasks.draws import draw_examples, draw_one
from vlm_lens.tasks.rows import Modality, Row, Split, TaskError, check_rows, make_row
from vlm_lens.template import QUESTION_ANSWER, RawPrompt, Template

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    r"""A task: an entity goes in, as a name or as a picture, and one attribute comes out.

    Attributes:
        name: The task's name.
        instruction: The task in words; ends in a colon.
        validation: The rows from which vectors are read and layers chosen.
        test: The rows on which accuracies are reported.
        domain: What the entities are; tasks of one domain share entities and split.
        task_word: The one word for the task, looked for in what the logit lens decodes; None
            where none is known.
        template: How prompts are written.

    Example:
        >>> task = Task.load("country-capital")
        >>> len(task.validation), len(task.test)
        (30, 100)
        >>> task["France"].answers
        ('Paris',)
        >>> task.query("France", "text").text
        'Q:France\nA:'
    """

    name: str
    instruction: str
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    domain: str = ""
    task_word: str | None = None
    template: Template = QUESTION_ANSWER

    def __post_init__(self) -> None:
        """Check that no row is there twice."""
        object.__setattr__(self, "validation", tuple(self.validation))
        object.__setattr__(self, "test", tuple(self.test))
        if not self.validation + self.test:
            raise TaskError(f"the task {self.name!r} has no rows")
        check_rows(self.name, self.validation + self.test)

    # ------------------------------------------------------------------ where tasks come from
    @staticmethod
    def names() -> tuple[str, ...]:
        """The names of the shipped tasks, the paper's six first."""
        return registry.PAPER_TASKS + registry.EXTRA_TASKS

    @classmethod
    def load(cls, name: str) -> Task:
        """Load a task that ships with the package.

        Args:
            name: One of `Task.names()`.

        Returns:
            The task; the same object each time, so that pictures are opened once.

        Raises:
            TaskError: No shipped task has this name.
        """
        return _load(name)

    @classmethod
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
    ) -> Task:
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
            TaskError: A row is wrong or there twice, or a picture is missing or no picture.
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
        return cls(name, instruction, *splits, domain=domain, task_word=task_word)

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        *,
        instruction: str,
        name: str | None = None,
        images: str | os.PathLike[str] | None = None,
        validation: int = 30,
        domain: str = "",
        task_word: str | None = None,
        width: int | None = None,
    ) -> Task:
        """Read a task from a CSV file with the columns of the shipped tables.

        Args:
            path: The file: columns `input` and `output`, and where wanted `image`, `aliases` (with
                `|` between them) and `split` (`validation` or `test`).
            instruction: The task in words.
            name: The task's name; the file's stem if None.
            images: Where the paths of the pictures start; the CSV file's folder if None.
            validation: Without a `split` column, how many rows from the top are for validation.
            domain: What the entities are.
            task_word: The one word for the task.
            width: The width to which pictures are brought; None leaves them as they are.

        Returns:
            The task.

        Raises:
            TaskError: The file, a column, a value or a picture is missing or wrong.
        """
        path = Path(path)
        splits = sources.read_csv(
            path,
            images=None if images is None else Path(images),
            validation=validation,
            width=width,
        )
        return cls(name or path.stem, instruction, *splits, domain=domain, task_word=task_word)

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        instruction: str | None = None,
        domain: str | None = None,
        task_word: str | None = None,
        width: int | None = 224,
    ) -> Task:
        """Read a task from a folder as the paper's authors publish their data.

        Args:
            folder: The folder with `annotations/{name}_{val|test}.json`; the paths of the pictures
                start at the folder.
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
        folder = Path(folder)
        if name is None:
            found = sources.folder_tasks(folder)
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
            *sources.read_folder(folder, name, width=width),
            domain=domain if domain is not None else (known.domain if known else ""),
            task_word=task_word if task_word is not None else (known.task_word if known else None),
        )

    # ------------------------------------------------------------------------------- rows
    def rows(self, split: Split) -> tuple[Row, ...]:
        """The rows of one split.

        Args:
            split: `"validation"` or `"test"`.

        Returns:
            The rows, in the order of the table.

        Raises:
            TaskError: There is no such split.
        """
        if split not in get_args(Split):
            raise TaskError(f"a split is 'validation' or 'test', not {split!r}")
        return self.validation if split == "validation" else self.test

    def __getitem__(self, name: str) -> Row:
        """The row whose input is `name`, from either split."""
        for row in self:
            if row.input == name:
                return row
        near = near_matches(str(name), (row.input for row in self))
        raise TaskError(f"the task {self.name!r} has no row {name!r}.{near}")

    def __iter__(self) -> Iterator[Row]:
        """All rows, those for validation first."""
        return iter(self.validation + self.test)

    def __len__(self) -> int:
        """How many rows there are in both splits."""
        return len(self.validation) + len(self.test)

    # ---------------------------------------------------------------------------- prompts
    def query(self, row: Row | str, modality: Modality) -> RawPrompt:
        r"""A zero-shot prompt: `Q:{input}\nA:` and nothing else.

        Args:
            row: The row, or its input.
            modality: Whether its name or its picture is given.

        Returns:
            The prompt.
        """
        return self.template.build((), self._row(row).given(modality))

    def examples(
        self,
        n: int,
        modality: Modality = "text",
        *,
        seed: int,
        split: Split = "validation",
        query: Row | str | None = None,
        query_modality: Modality | None = None,
    ) -> RawPrompt:
        """A few-shot prompt: `n` full examples, then an open query.

        The examples are the first `n` of one permutation of the split's rows without the query. If
        no query is given, it is the next row of that permutation: a dummy, there because the
        vector is read before it, at the last example's `A:` (`Find(":", -3)`).

        Args:
            n: How many examples.
            modality: Whether the examples' names or pictures are given.
            seed: The seed of the draw.
            split: Where the examples are drawn from.
            query: The row left open, or its input; of either split.
            query_modality: Whether the query's name or picture is given; as the examples if None.

        Returns:
            The prompt.

        Raises:
            TaskError: The split has too few rows.
        """
        rows = self.rows(split)
        if query is None:
            *drawn, last = draw_one(len(rows), n + 1, seed=seed)
            asked = rows[last]
        else:
            asked = self._row(query)
            index = rows.index(asked) if asked in rows else None
            drawn = draw_one(len(rows), n, seed=seed, query=index)
        return self._prompt([rows[i] for i in drawn], asked, modality, query_modality)

    def example_sets(
        self,
        modality: Modality = "text",
        *,
        seed: int,
        target_modality: Modality | None = None,
        n: int = 5,
        split: Split = "validation",
    ) -> tuple[RawPrompt, ...]:
        """The few-shot prompts of one seed: one for each row of a split, with that row as query.

        On the validation split these are the prompts over which the paper's code averages a
        vector; on the test split they are its 'Prompt' baseline, one prompt a query, the examples
        drawn from the other test rows. The draws are those of that code: see `draw_examples`. The
        order of the rows is part of them, so the same seed on the authors' data gives the authors'
        prompts.

        Args:
            modality: Whether the examples' names or pictures are given.
            seed: The seed; the paper uses 1, 2 and 3.
            target_modality: Whether the queries' names or pictures are given; as the examples if
                None.
            n: How many examples a prompt.
            split: Whose rows are the queries, and where the examples are drawn from.

        Returns:
            The prompts, in the order of `rows(split)`.

        Raises:
            TaskError: The split has too few rows.
        """
        rows = self.rows(split)
        sets = draw_examples(len(rows), n, seed=seed)
        return tuple(
            self._prompt([rows[i] for i in drawn], query, modality, target_modality)
            for query, drawn in zip(rows, sets, strict=True)
        )

    # --------------------------------------------------------------------------- variants
    def shuffled(self, seed: int) -> Task:
        """The same task with the answers permuted among the rows of each split: a control.

        Args:
            seed: The seed of the permutation.

        Returns:
            A task with the same inputs and pictures, and the same answers on other rows.
        """
        generator = np.random.RandomState(seed)

        def permuted(rows: tuple[Row, ...]) -> tuple[Row, ...]:
            order = generator.permutation(len(rows))
            return tuple(
                replace(row, output=rows[i].output, aliases=rows[i].aliases)
                for row, i in zip(rows, order, strict=True)
            )

        return replace(
            self,
            name=f"{self.name}-shuffled-{seed}",
            validation=permuted(self.validation),
            test=permuted(self.test),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """All rows as a DataFrame: input, output, aliases, split and where the picture is."""
        return show.dataframe({split: self.rows(split) for split in get_args(Split)})

    # ------------------------------------------------------------------------------ repr
    def __repr__(self) -> str:
        """Show the name, the sizes and one row."""
        first = next(iter(self))
        return (
            f"Task({self.name!r}: {len(self.validation)} validation + {len(self.test)} test rows, "
            f"e.g. {first.input} -> {first.output})"
        )

    def _repr_html_(self) -> str:
        """Show the first rows with their pictures."""
        title = f"{self.name}: {len(self.validation)} validation + {len(self.test)} test rows"
        return show.table(title, self.instruction, list(self)[:6])

    # --------------------------------------------------------------------------- private
    def _row(self, row: Row | str) -> Row:
        return self[row] if isinstance(row, str) else row

    def _prompt(
        self, examples: list[Row], query: Row, modality: Modality, target: Modality | None
    ) -> RawPrompt:
        return self.template.build(
            [(row.given(modality), row.output) for row in examples],
            query.given(modality if target is None else target),
        )


@cache
def _load(name: str) -> Task:
    spec = registry.spec(name)
    splits = sources.read_package(name)
    return Task(name, spec.instruction, *splits, domain=spec.domain, task_word=spec.task_word)
