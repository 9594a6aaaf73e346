"""Writes constraints.txt: the versions, in this environment, of all that the project depends on."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def closure(
    needs: Iterable[str], extras: Iterable[str], found: dict[str, str], missing: set[str]
) -> None:
    """Adds what some requirements name, and what that requires in turn, to `found`."""
    for need in map(Requirement, needs):
        marks = [{"extra": e} for e in extras] or [{"extra": ""}]
        if need.marker and not any(need.marker.evaluate(m) for m in marks):
            continue
        key = canonicalize_name(need.name)
        if key == PROJECT["name"]:  # an extra that names another, which is asked for anyway
            continue
        try:
            known = distribution(need.name)
        except PackageNotFoundError:
            missing.add(key)
            continue
        seen = key in found
        found[key] = known.version.split("+")[0]
        if not seen or need.extras:
            closure(known.requires or (), need.extras, found, missing)


def main() -> None:
    """Writes the file beside pyproject.toml, which says what the project and its extras need."""
    found: dict[str, str] = {}
    missing: set[str] = set()
    for needs in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()):
        closure(needs, (), found, missing)
    if missing:
        raise SystemExit(f"Not installed here: {', '.join(sorted(missing))}. Install them first.")
    lines = [f"{name}=={version}" for name, version in sorted(found.items())]
    head = "# The exact versions that the tests run with; made by scripts/make_constraints.py."
    path = ROOT / "constraints.txt"
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    print(f"{len(lines)} versions in {path}")


if __name__ == "__main__":
    main()
