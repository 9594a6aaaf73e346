"""The points of a model as a table, and how names, globs and short forms find them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import PointError, near_matches
from vlm_lens.integers import is_integer
from vlm_lens.points import aliases
from vlm_lens.points.point import Point, expand_name

if TYPE_CHECKING:
    import pandas as pd

NamesFilter = str | tuple | Sequence[str | tuple] | Callable[[str], bool] | None

_NO_NAME = "A point is a name, a glob or (short name, layer), not {!r:.60}."


def expand_braces(pattern: str) -> list[str]:
    """`blocks.{2,5}.x` -> both names; `blocks.{2..5}.x` -> 2, 3, 4 and 5."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if first > last:
            raise PointError(
                f"{pattern!r} selects nothing: {{{first}..{last}}} counts down; write "
                f"{{{last}..{first}}}."
            )
        choices = [str(i) for i in range(first, last + 1)]
    else:
        choices = [c.strip() for c in match[1].split(",")]
        if not all(choices) or ".." in match[1]:
            raise PointError(
                f"{pattern!r}: between braces stand names or numbers, {{2,5}}, or a stretch of "
                "layers, {2..5}."
            )
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for c in choices for name in expand_braces(f"{head}{c}{tail}")]


class PointTable(Mapping[str, Point]):
    """The points of one model in the order in which it computes them; prints itself as a table.

    Args:
        points: The points.
        missing: What the family lacks: glob -> reason. Asking for one raises it.
        aliases: TransformerLens's names; found from where the points lie if left out.
    """

    def __init__(
        self,
        points: Iterable[Point],
        missing: Mapping[str, str] | None = None,
        aliases: Mapping[str, str] | None = None,
    ):
        self._points = {p.name: p for p in points}
        self.missing = dict(missing or {})
        self._aliases = aliases

    def __getitem__(self, name: str | tuple) -> Point:
        if isinstance(name, str) and name in self._points:
            return self._points[name]
        full = self.full_name(name)
        if full in self._points:
            return self._points[full]
        raise PointError(self._why_not(full))

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str | tuple) and self.full_name(name) in self._points

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Names by which users of TransformerLens know these points -> the points' own."""
        if self._aliases is not None:
            return dict(self._aliases)
        return aliases.aliases(self._points)

    def full_name(self, name: str | tuple) -> str:
        """The full name of a short form or alias; a negative layer counts from the last block."""
        if isinstance(name, tuple) and len(name) > 1 and is_integer(name[1]) and name[1] < 0:
            pattern = expand_name((name[0], "*"))
            n_layers = sum(fnmatchcase(n, pattern) for n in self._points)
            name = (name[0], n_layers + name[1], *name[2:])
        full = expand_name(name)
        return full if full in self._points else self.aliases.get(full, full)

    def _why_not(self, name: str) -> str:
        for pattern, reason in self.missing.items():
            if fnmatchcase(aliases.here(name), pattern):
                return f"This model has no point {name!r}: {reason}"
        if reason := aliases.why_without(name, self.aliases):
            return f"There is no point {name!r}: {reason}"
        return (
            f"There is no point {name!r}.{near_matches(name, self._points)} "
            "`vlm.points()` lists every point of this model."
        )

    def match(self, names: NamesFilter) -> list[str]:
        """The names selected by a name, a glob, a short form, a list of them, or a function.

        Globs are those of `fnmatch`, matched against the whole name, and `{2,5}` or `{2..5}`
        lists layers. `None` selects everything but attention scores and patterns, which cost
        extra: ask for those by name. The order is that of the forward pass. Names of
        TransformerLens stand for the points that are the same thing; a glob that matches no name
        of this package selects among those, `*` then standing for no dot.

        Raises:
            PointError: A name or a glob that matches nothing, with near matches.
        """
        if names is None:
            return [n for n, p in self._points.items() if not p.on_demand]
        if isinstance(names, list) and len(names) == 1:
            names = names[0]
        if isinstance(names, str) and names in self._points:  # as sweeps ask, for each variant
            return [names]
        if callable(names):
            found = {n for n in self._points if names(n)}
            if not found:
                raise PointError("The names_filter function selected none of the points.")
        else:
            asked = [names] if isinstance(names, str | tuple) else names
            if not isinstance(asked, Iterable):
                raise PointError(_NO_NAME.format(names))
            found, asked = set(), list(asked)
            if not asked:
                raise PointError(
                    "An empty list selects no point: name one, or leave it out for every point."
                )
            for one in asked:
                found.update(self._match_one(self._full(one)))
        return [n for n in self._points if n in found]

    def _full(self, name: Any) -> str:
        """A name with its short form written out and its layer counted from the first."""
        if isinstance(name, tuple):
            return self.full_name(name)
        if not isinstance(name, str):
            raise PointError(_NO_NAME.format(name))
        return name

    def _match_one(self, name: str) -> set[str]:
        found: set[str] = set()
        for pattern in expand_braces(name):
            hits = {self.full_name(pattern)} & self._points.keys()
            if not hits and any(c in pattern for c in "*?["):
                hits = {n for n in self._points if fnmatchcase(n, pattern)} or {
                    n for alias, n in self.aliases.items() if aliases.matches(alias, pattern)
                }
            if not hits:
                globbed = any(c in pattern for c in "*?[")
                if not globbed or any(fnmatchcase(pattern, lacking) for lacking in self.missing):
                    raise PointError(self._why_not(pattern))
                near = near_matches(pattern, self.groups())
                raise PointError(
                    f"No point matches {pattern!r}.{near} `vlm.points()` lists every point."
                )
            found |= hits
        return found

    def select(self, names: NamesFilter) -> PointTable:
        """The table of the points that `names` selects."""
        return PointTable((self._points[n] for n in self.match(names)), self.missing)

    def groups(self) -> dict[str, list[Point]]:
        """Points that differ by layer alone, together: `blocks.*.hook_resid_post` -> points."""
        grouped: dict[str, list[Point]] = {}
        for point in self._points.values():
            key = re.sub(r"blocks\.\d+\.", "blocks.*.", point.name)
            grouped.setdefault(key, []).append(point)
        return grouped

    def rows(self) -> list[dict[str, Any]]:
        """One row a group: name, layers, shape, readable, writable, what it is."""
        rows = []
        for name, points in self.groups().items():
            barred = [p for p in points if not p.writable]
            writable = "yes" if not barred else "no" if len(barred) == len(points) else "partly"
            note = f" ({barred[0].read_only})" if barred else ""
            layers = [p.layer for p in points if p.layer is not None]
            span = f"{layers[0]}..{layers[-1]}" if len(layers) > 1 else str(*layers)
            if barred and writable == "partly":
                writable = f"not {', '.join(str(p.layer) for p in barred)}"
            rows.append(
                {"point": name, "layers": span, "shape": points[0].shape,
                 "readable": "on demand" if points[0].on_demand else "yes",
                 "writable": writable, "what it is": points[0].doc + note}
            )  # fmt: skip
        return rows

    def to_dataframe(self) -> pd.DataFrame:
        """The table as a DataFrame, one row a group of points."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def __repr__(self) -> str:
        rows = self.rows()
        width = max((len(r["point"]) for r in rows), default=0)
        wide = max((len(r["shape"]) for r in rows), default=0)
        lines = [
            f"{r['point']:<{width}}  {r['layers']:<6} {r['shape']:<{wide}}  write: {r['writable']}"
            for r in rows
        ]
        return "\n".join([f"{len(self)} points in {len(rows)} groups", *lines])

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False)
