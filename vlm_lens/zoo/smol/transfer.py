"""Task vectors from one modality into queries of the other, on validation rows or on test rows.

Plain torch on `language.Language`; the draws and the rule (the token and an answer, stripped, begin
one another) are those of Luo et al. 2025 (arXiv 2410.22330).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm_lens.tasks.draws import draw_examples
from vlm_lens.zoo.smol.corpus import IMAGE
from vlm_lens.zoo.smol.language import Language, Patch

__all__ = ["TASKS", "Prompts", "Table", "Transfer"]

TASKS = (
    "country-capital",
    "country-currency",
    "animal-latin",
    "animal-young",
    "food-color",
    "food-flavor",
)
_ROWS = 1024


@dataclass
class Table:
    """A task's rows of one split: inputs, pictures' numbers, and every right answer."""

    name: str
    inputs: list[str]
    pictures: list[int]
    outputs: list[str]
    answers: list[tuple[str, ...]]

    @classmethod
    def load(cls, folder: Path, name: str, split: str, pictures: Mapping[str, int]) -> Table:
        """Read one split of a shipped table."""
        with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        return cls(
            name,
            [row["input"] for row in rows],
            [pictures[row["image"]] for row in rows],
            [row["output"] for row in rows],
            [(row["output"], *(a for a in row["aliases"].split("|") if a)) for row in rows],
        )


@dataclass
class Prompts:
    """Prompts as tokens, padded on the right, with the pictures of each in order."""

    ids: Tensor
    pictures: list[list[int]]
    last: Tensor


class Transfer:
    """Measures No Context, Prompt and Patch between modalities.

    Args:
        language: The language model.
        tokenizer: A tokenizer of the library tokenizers.
        tables: The tasks' rows of the split that queries are drawn from.
        source: Those that vectors are read from; the validation rows.
        image_tokens: How many tokens a picture has.
        seed: Of the draws of examples.
    """

    def __init__(
        self,
        language: Language,
        tokenizer: Any,
        tables: Sequence[Table],
        source: Sequence[Table],
        image_tokens: int,
        seed: int = 1,
    ):
        self.language, self.tokenizer = language, tokenizer
        self.tables, self.source, self.image_tokens = tables, source, image_tokens
        self.seed = seed

    @torch.no_grad()
    def measure(
        self, merged: Mapping[str, Tensor], tokens: Tensor, source: str, query: str
    ) -> dict[str, Any]:
        """Accuracies of one pair of modalities.

        Args:
            merged: The language model's maps.
            tokens: The projected tokens of every picture, `[picture, token, width]`.
            source: `"text"` or `"image"`, the examples.
            query: `"text"` or `"image"`, the queries.

        Returns:
            Accuracy by task of `no_context`, `prompt`, and at the block that is best on average
            `patch`, `wrong` (the vector of the domain's other task) and `random`; `layers`, the
            mean over tasks by block; `block`; `said`, some answers to the patch.
        """
        vectors, curves, plain, prompts = [], [], [], []
        for own in self.source:
            vectors.append(self._vector(merged, tokens, own, source))
        blocks = self.language.blocks
        queries = [self._queries(table, query) for table in self.tables]
        for table, given, vector in zip(self.tables, queries, vectors, strict=True):
            plain.append(self._accuracy(merged, tokens, given, table))
            few = self._few_shot(table, source, query)
            prompts.append(self._accuracy(merged, tokens, few, table))
            curves.append(self._patched(merged, tokens, given, table, vector, range(blocks)))
        layers = torch.tensor(curves).mean(0)
        best = int(layers.argmax())
        wrong, random, said = [], [], {}
        generator = torch.Generator().manual_seed(self.seed)
        for i, (table, given) in enumerate(zip(self.tables, queries, strict=True)):
            other = vectors[i ^ 1]
            drawn = torch.randn(other.shape, generator=generator).to(other.device)
            drawn = drawn * vectors[i].norm(dim=-1, keepdim=True) / drawn.norm(dim=-1, keepdim=True)
            for found, vector in ((wrong, other), (random, drawn)):
                found += self._patched(merged, tokens, given, table, vector, [best])
            some = self._patched_tokens(merged, tokens, given, vectors[i], [best])[:8]
            said[table.name] = [
                f"{name}:{self._text[token]}"
                for name, token in zip(table.inputs, some, strict=False)
            ]
        return {
            "no_context": plain,
            "prompt": prompts,
            "patch": [curve[best] for curve in curves],
            "wrong": wrong,
            "random": random,
            "layers": [round(v, 4) for v in layers.tolist()],
            "block": best,
            "said": said,
        }

    @torch.no_grad()
    def spelled(self, merged: Mapping[str, Tensor], tokens: Tensor, names: Sequence[str]) -> float:
        """The share of pictures whose whole name is the greedy continuation of a wording."""
        before = self._encode("\nThis is")
        rows, spans = [], []
        for number, name in enumerate(names):
            ids = self._encode(f" {name}")
            rows.append(([IMAGE] * self.image_tokens + before + ids, [number]))
            spans.append(len(ids))
        given = self._padded(rows)
        right = []
        for part, numbers in self._parts(given):
            residual = self._run(merged, tokens, part).last
            for row, number in zip(residual, numbers, strict=True):
                end = int(given.last[number])
                at = torch.arange(end - spans[number], end)
                said = self.language.logits(row[at], merged["o"].dtype).argmax(-1).cpu()
                right.append(bool((said == given.ids[number, at + 1]).all()))
        return sum(right) / len(right)

    # ------------------------------------------------------------------ prompts

    def _queries(self, table: Table, modality: str) -> Prompts:
        return self._padded(
            [self._written([], table, i, modality, modality) for i in self._of(table)]
        )

    def _few_shot(self, table: Table, source: str, query: str) -> Prompts:
        sets = draw_examples(len(table.inputs), 5, seed=self.seed)
        rows = [self._written(d, table, i, source, query) for i, d in enumerate(sets)]
        return self._padded(rows)

    def _open(self, table: Table, source: str) -> Prompts:
        sets = draw_examples(len(table.inputs), 5, seed=self.seed)
        return self._padded([self._written(d[:-1], table, d[-1], source, source) for d in sets])

    def _written(
        self, shown: Sequence[int], table: Table, asked: int, source: str, query: str
    ) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        pictures: list[int] = []
        text = ""
        for i, modality in [*((i, source) for i in shown), (asked, query)]:
            text += "Q:"
            if modality == "image":
                ids += self._encode(text) + [IMAGE] * self.image_tokens
                pictures.append(table.pictures[i])
                text = "\nA:"
            else:
                text += f"{table.inputs[i]}\nA:"
            if i != asked:
                text += f"{table.outputs[i]}\n\n"
        return ids + self._encode(text), pictures

    def _padded(self, rows: Sequence[tuple[list[int], list[int]]]) -> Prompts:
        ids = torch.zeros(len(rows), max(len(row) for row, _ in rows), dtype=torch.long)
        for i, (row, _) in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row, _ in rows])
        return Prompts(ids, [pictures for _, pictures in rows], last)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    @staticmethod
    def _of(table: Table) -> range:
        return range(len(table.inputs))

    # ------------------------------------------------------------------ runs

    def _parts(self, prompts: Prompts):
        for start in range(0, len(prompts.ids), _ROWS):
            rows = list(range(start, min(start + _ROWS, len(prompts.ids))))
            yield Prompts(prompts.ids[rows], [prompts.pictures[i] for i in rows],
                          prompts.last[rows]), rows  # fmt: skip

    def _run(
        self, merged: Mapping[str, Tensor], tokens: Tensor, part: Prompts, patch=None, at=None
    ) -> Any:
        device = self.language.embed.device
        ids = part.ids.to(device)
        x = self.language.embed[ids.clamp(min=0)]
        shown = [p for pictures in part.pictures for p in pictures]
        if shown:
            flat = tokens[torch.tensor(shown, device=tokens.device)].flatten(0, 1)
            x[ids == IMAGE] = flat.to(x.dtype)
        return self.language.read(merged, x, patch=patch, at=at)

    def _vector(
        self, merged: Mapping[str, Tensor], tokens: Tensor, table: Table, source: str
    ) -> Tensor:
        prompts = self._open(table, source)
        at = prompts.last.to(self.language.embed.device)
        read = [self._run(merged, tokens, part, at=at[rows]).read
                for part, rows in self._parts(prompts)]  # fmt: skip
        return torch.cat(read).mean(0)

    def _said(self, merged: Mapping[str, Tensor], tokens: Tensor, part: Prompts, patch=None):
        residual = self._run(merged, tokens, part, patch).last
        each = torch.arange(len(residual), device=residual.device)
        last = residual[each, part.last.to(residual.device)]
        return self.language.logits(last, merged["o"].dtype).argmax(-1).tolist()

    def _accuracy(self, merged, tokens, prompts: Prompts, table: Table) -> float:
        said = [t for part, _ in self._parts(prompts) for t in self._said(merged, tokens, part)]
        return self._right(said, table.answers)

    def _patched(
        self, merged, tokens, prompts: Prompts, table: Table, vector: Tensor, blocks: Sequence[int]
    ) -> list[float]:
        """The accuracy with the vector written after each block in turn."""
        rows = len(prompts.ids)
        said = self._patched_tokens(merged, tokens, prompts, vector, blocks)
        parts = [said[i * rows : (i + 1) * rows] for i in range(len(blocks))]
        return [self._right(part, table.answers) for part in parts]

    def _patched_tokens(
        self, merged, tokens, prompts: Prompts, vector: Tensor, blocks: Sequence[int]
    ) -> list[int]:
        """What is said with the vector written after each block, all rows of one block together."""
        device = self.language.embed.device
        runs = list(product(blocks, range(len(prompts.ids))))
        said: list[int] = []
        for start in range(0, len(runs), _ROWS):
            part = runs[start : start + _ROWS]
            chosen = [row for _, row in part]
            block = torch.tensor([b for b, _ in part], device=device)
            some = Prompts(
                prompts.ids[chosen], [prompts.pictures[i] for i in chosen], prompts.last[chosen]
            )
            patch = Patch(block, some.last.to(device), vector[block])
            said += self._said(merged, tokens, some, patch)
        return said

    def _right(self, said: Sequence[int], answers: Sequence[tuple[str, ...]]) -> float:
        right = [
            any(_match(self._text[token], answer) for answer in accepted)
            for token, accepted in zip(said, answers, strict=True)
        ]
        return sum(right) / len(right)

    @cached_property
    def _text(self) -> list[str]:
        vocabulary = range(self.tokenizer.get_vocab_size())
        return [self.tokenizer.decode([i], skip_special_tokens=True).strip() for i in vocabulary]


def _match(said: str, answer: str) -> bool:
    answer = answer.strip()
    return bool(said) and (said.startswith(answer) or answer.startswith(said))
