"""Runs of lines that stand in more than one place, to the letter or in the same shape.

The shape of a line is its tokens with every name, number and string replaced by a sign, so that a
copy with other names is found too. Blank lines, comments, docstrings, imports and lines of
punctuation alone do not count, nor do shapes that any table of data has.
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

RUN = 6  # lines, at the least
COMMON = 8  # a run in more places than this is an idiom of the code, not a copy
WORDS = 24  # names, numbers, strings and keywords in a run that counts by its shape
SHAPES = 5  # different lines in a run that counts by its shape

Place = tuple[str, int]  # a file and the index of a line among those that count
_LAYOUT = {tokenize.NEWLINE, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}


class Text:
    """The lines of a file that count: their numbers, their tokens, their shapes."""

    def __init__(self, source: str) -> None:
        passed = set(_passed_over(ast.parse(source)))
        words: dict[int, list[str]] = defaultdict(list)
        signs: dict[int, list[str]] = defaultdict(list)
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            line = token.start[0]
            if token.type not in _LAYOUT and token.string and line not in passed:
                words[line].append(token.string)
                signs[line].append(_sign(token))
        self.numbers = [n for n in sorted(words) if any(_is_word(s) for s in signs[n])]
        self.lines = [tuple(words[n]) for n in self.numbers]
        self.shapes = [tuple(signs[n]) for n in self.numbers]

    def runs(self) -> Iterator[tuple[int, tuple]]:
        """Every run of RUN lines by its first index: to the letter, then by shape."""
        for i in range(len(self.lines) - RUN + 1):
            yield i, tuple(self.lines[i : i + RUN])
            shape = tuple(self.shapes[i : i + RUN])
            count = sum(_is_word(s) for line in shape for s in line)
            if count >= WORDS and len(set(shape)) >= SHAPES:
                yield i, ("shape", *shape)


def _passed_over(tree: ast.Module) -> Iterator[int]:
    """The lines of imports and docstrings."""
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text or isinstance(node, ast.Import | ast.ImportFrom):
            yield from range(node.lineno, node.end_lineno + 1)


def _sign(token: tokenize.TokenInfo) -> str:
    if token.type == tokenize.NAME:
        return token.string if keyword.iskeyword(token.string) else "name"
    return {tokenize.NUMBER: "number", tokenize.STRING: "string"}.get(token.type, token.string)


def _is_word(sign: str) -> bool:
    return sign[0].isalnum()


def repeats(sources: Mapping[str, str]) -> dict[tuple[str, str], list[tuple[int, int, int]]]:
    """The pairs of files that share runs, and the runs of each, longest first.

    Args:
        sources: the text of each file by its name.

    Returns:
        For each pair of names (the same twice where a file repeats itself): the first line of a
        run in the one, in the other, and how many lines that count it is long.
    """
    texts = {name: Text(source) for name, source in sources.items()}
    places: dict[tuple, list[Place]] = defaultdict(list)
    for name, text in texts.items():
        for i, run in text.runs():
            places[run].append((name, i))
    starts: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
    for found in places.values():
        if len(found) > COMMON:
            continue
        for (a, i), (b, j) in combinations(found, 2):
            if a != b or abs(i - j) >= RUN:
                starts[a, b].add((i, j))
    return {
        (a, b): sorted(
            ((texts[a].numbers[i], texts[b].numbers[j], n) for i, j, n in _joined(pairs)),
            key=lambda run: -run[2],
        )
        for (a, b), pairs in starts.items()
    }


def _joined(starts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Runs that begin one line after each other, as one longer run."""
    left = set(starts)
    for i, j in sorted(left):
        if (i - 1, j - 1) in left:
            continue
        length = RUN
        while (i + length - RUN + 1, j + length - RUN + 1) in left:
            length += 1
        yield i, j, length
