"""Writes constraints.txt: the versions, in this environment, of all that the project depends on."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = ("docs", "tutorials", "dev")


def closure(name: str, extras: tuple[str, ...], found: dict[str, str]) -> None:
    """Adds every requirement of a package, and theirs, to `found`."""
    for text in distribution(name).requires or ():
        need = Requirement(text)
        marks = [{"extra": e} for e in extras] or [{"extra": ""}]
        if need.marker and not any(need.marker.evaluate(m) for m in marks):
            continue
        key = canonicalize_name(need.name)
        try:
            version = distribution(need.name).version.split("+")[0]
        except PackageNotFoundError:
            continue
        seen = key in found
        found[key] = version
        if not seen or need.extras:
            closure(need.name, tuple(need.extras), found)


def main() -> None:
    """Writes the file beside pyproject.toml."""
    found: dict[str, str] = {}
    closure("vlm-lens", EXTRAS, found)
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    head = "# The exact versions that the tests run with; made by scripts/make_constraints.py."
    path = Path(__file__).parents[1] / "constraints.txt"
    path.write_text("\n".join([head, *lines]) + "\n")
    print(f"{len(lines)} versions in {path}")


if __name__ == "__main__":
    main()
