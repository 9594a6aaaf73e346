"""Counts what makes a code base hard to walk through, and fails where a count is over its bound.

`python -m scripts.lint.structure` prints a line a count, with its bound; `--list` prints what was
counted. Files are read as text and parsed; nothing is imported. Imports inside functions and under
`if TYPE_CHECKING:` count like any other: who reads the one module has to know the other.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scripts.lint.repeats import repeats

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vlm_lens"
LINES = 400  # of a module
CODE = ("vlm_lens", "tests", "scripts", "benchmarks", "docs")  # where repeated runs are looked for

Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """The modules of the package by dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> Graph:
    """Which module names which others in an import statement, anywhere in its text."""
    files = modules(root)
    graph: Graph = {}
    for name, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = _absolute(node, name, path.name == "__init__.py")
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    named.add(full if full in files else base)
        graph[name] = {n for n in named if n in files and n != name}
    return graph


def _absolute(node: ast.ImportFrom, name: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    up = name.split(".")[: len(name.split(".")) - node.level + is_package]
    return ".".join([*up, *([node.module] if node.module else [])])


def rooms(graph: Graph) -> Graph:
    """The same graph between the packages directly under the top one, and the modules there."""

    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    folded: Graph = {room(name): set() for name in graph}
    for name, named in graph.items():
        folded[room(name)] |= {room(n) for n in named} - {room(name)}
    return folded


def circles(graph: Graph) -> list[list[str]]:
    """One shortest circle through each import that lies on any, each circle once."""
    found: dict[frozenset[str], list[str]] = {}
    for start, named in graph.items():
        for first in sorted(named):
            path = _shortest(graph, first, start)
            if path is not None:
                found.setdefault(frozenset(path), [start, *path])
    return list(found.values())


def _shortest(graph: Graph, start: str, end: str) -> list[str] | None:
    paths, seen = [[start]], {start}
    for path in paths:
        if path[-1] == end:
            return path
        for name in sorted(graph[path[-1]] - seen):
            seen.add(name)
            paths.append([*path, name])
    return None


def long_modules(root: Path) -> Iterator[str]:
    """Modules of more than LINES lines."""
    for name, path in modules(root).items():
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > LINES:
            yield f"{name}: {count} lines"


def untyped_models(root: Path) -> Iterator[str]:
    """Arguments and fields called `vlm` that are annotated `Any`."""
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.arg if isinstance(node, ast.arg) else None
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                name = node.target.id
            if name == "vlm" and node.annotation and ast.unparse(node.annotation) == "Any":
                yield f"{path.relative_to(root)}:{node.lineno}"


def repeated(root: Path) -> Iterator[str]:
    """Pairs of files that share a run of lines."""
    files = [path for folder in CODE for path in sorted((root / folder).rglob("*.py"))]
    texts = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in files}
    for (a, b), runs in repeats(texts).items():
        first, second, length = runs[0]
        more = f", and {len(runs) - 1} more" if len(runs) > 1 else ""
        yield f"{a}:{first} ~ {b}:{second} ({length} lines{more})"


def without_source(root: Path) -> Iterator[str]:
    """Test files named after nothing: no module, no folder, no script of that name and place.

    Families share generic checks, which run on every tiny model.
    """
    for path in sorted((root / "tests").rglob("test_*.py")):
        place = path.relative_to(root / "tests").with_name(path.stem.removeprefix("test_"))
        if place.parts[0] in ("whole", "families", "gpu") or (root / place).is_dir():
            continue
        if place.parts[0] == "scripts":
            found = any((root / "scripts").rglob(f"{place.name}.py"))
        else:
            source = root / PACKAGE / place
            package = place.name == place.parent.name
            found = source.with_suffix(".py").is_file() or source.is_dir() or package
        if not found:
            yield str(path.relative_to(root))


# what is counted -> how, and the most there may be
COUNTS: dict[str, tuple[Callable[[Path], list[str]], int]] = {
    "circles of imports between modules": (lambda root: _drawn(circles(imports(root))), 0),
    "circles of imports between packages": (lambda root: _drawn(circles(rooms(imports(root)))), 0),
    f"modules over {LINES} lines": (lambda root: list(long_modules(root)), 0),
    "times `vlm: Any`": (lambda root: list(untyped_models(root)), 0),
    "pairs of files with a repeated run of lines": (lambda root: list(repeated(root)), 37),
    "test files named after no source file": (lambda root: list(without_source(root)), 8),
}


def _drawn(found: list[list[str]]) -> list[str]:
    return [" -> ".join(circle) for circle in found]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the counts; returns 1 where one is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print what was counted")
    parser.add_argument("--root", type=Path, default=ROOT, help="the folder of another checkout")
    options = parser.parse_args(arguments)
    over = False
    for what, (count, most) in COUNTS.items():
        found = count(options.root)
        over |= len(found) > most
        mark = "  <-- too many" if len(found) > most else ""
        print(f"{len(found):4} {what} (at most {most}){mark}")
        if options.list or mark:
            print(*(f"       {line}" for line in found), sep="\n")
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
