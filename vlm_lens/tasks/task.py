"""A task: its rows in two splits, what it asks, and the prompts built from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np

from vlm_lens.errors import near_matches
from vlm_lens.integers import as_integer
from vlm_lens.prompts.template import QUESTION_ANSWER, RawPrompt, Template
from vlm_lens.tasks import show
from vlm_lens.tasks.constructors import Constructors
from vlm_lens.tasks.draws import draw_examples, draw_one
from vlm_lens.tasks.rows import Modality, Row, Split, TaskError, check_rows
from vlm_lens.tasks.words import draw_words

if TYPE_CHECKING:
    import pandas as pd
    from PIL import ImageFont

__all__ = ["Task"]


@dataclass(frozen=True)
class Task(Constructors):
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
            modality: Whether its name, its picture or its description is given.

        Returns:
            The prompt.

        Raises:
            TaskError: The row does not have what is to be given.
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
            modality: Whether the examples' names, pictures or descriptions are given.
            seed: The seed of the draw.
            split: Where the examples are drawn from.
            query: The row left open, or its input; of either split.
            query_modality: Whether the query's name, picture or description is given; as the
                examples if None.

        Returns:
            The prompt.

        Raises:
            TaskError: The split has too few rows.
        """
        rows = self.rows(split)
        if as_integer(n, "the number of examples", TaskError) < 0:
            raise TaskError(f"the number of examples is {n}; it cannot be negative")
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
            modality: Whether the examples' names, pictures or descriptions are given.
            seed: The seed; the paper uses 1, 2 and 3.
            target_modality: Whether the queries' names, pictures or descriptions are given; as the
                examples if None.
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

    def fewer(self, test: int) -> Task:
        """The same task with fewer test rows, evenly spread over the table.

        Tasks that share their rows, as those of a domain do, keep the same ones.

        Args:
            test: How many test rows; a task that has no more keeps all.

        Raises:
            TaskError: No row would be left.
        """
        if test < 1:
            raise TaskError(f"a task keeps at least one test row, not {test}")
        n = len(self.test)
        chosen = [i * n // test for i in range(test)] if test < n else range(n)
        return replace(self, test=tuple(self.test[i] for i in chosen))

    def described(self) -> Task:
        """The same task on the rows that have a description, in both splits.

        Raises:
            TaskError: No row has one.
        """
        kept = {
            split: tuple(row for row in self.rows(split) if row.description)
            for split in get_args(Split)
        }
        if not any(kept.values()):
            raise TaskError(f"no row of {self.name!r} has a description")
        return replace(self, name=f"{self.name}-described", **kept)

    def as_words(self, *, size: int = 224, font: ImageFont.FreeTypeFont | None = None) -> Task:
        """The same task with each picture replaced by a picture of the input's words.

        What a model does with them needs reading, and no seeing of things.

        Args:
            size: Width and height of the pictures, in pixels.
            font: A font with all the letters; Pillow's own, which has ASCII only, if None.

        Returns:
            A task with the same rows, black words on white as pictures.

        Raises:
            TaskError: An input has letters that the font does not have.
        """

        def drawn(row: Row) -> Row:
            picture, box = draw_words(row.input, size=size, font=font)
            return replace(row, picture=picture, width=None, boxes=(box,))

        splits = {split: tuple(map(drawn, self.rows(split))) for split in get_args(Split)}
        return replace(self, name=f"{self.name}-words", **splits)

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
