"""What the conformance suite found."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_lens.errors import ModelError
from vlm_lens.storage.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class CheckResult:
    """One check on one model.

    Attributes:
        name: What was checked.
        outcome: `"passed"`, `"failed"` or `"not applicable"`.
        detail: What failed, or why the check does not apply, or what was counted.
    """

    name: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """The outcome of every check on one model; prints itself as a table.

    Attributes:
        model: Its name.
        family: Its family.
        results: One for each check.
        found: What the model shows and lacks, a name and a sentence each, where that was asked.
    """

    model: str
    family: str
    results: tuple[CheckResult, ...]
    found: tuple[tuple[str, str], ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(r.outcome != FAILED for r in self.results)

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(r for r in self.results if r.outcome == FAILED)

    def raise_if_failed(self) -> None:
        """Raises with every failure.

        Raises:
            ModelError: A check failed.
        """
        if not self.passed:
            lines = [f"  {r.name}: {r.detail}" for r in self.failures]
            raise ModelError(f"{self.model} ({self.family}) does not conform:\n" + "\n".join(lines))

    def to_dataframe(self) -> pd.DataFrame:
        """One row a check."""
        import pandas as pd

        return pd.DataFrame(
            {"check": r.name, "outcome": r.outcome, "detail": r.detail} for r in self.results
        )

    def __repr__(self) -> str:
        marks = {PASSED: "ok", FAILED: "FAILED", NOT_APPLICABLE: "-"}
        width = max(len(n) for n in [*(r.name for r in self.results), *(n for n, _ in self.found)])
        lines = [f"{self.model} ({self.family})"]
        lines += [f"  {name:<{width}}  {told}" for name, told in self.found]
        for r in self.results:
            lines.append(f"  {r.name:<{width}}  {marks[r.outcome]:<6}  {r.detail}".rstrip())
        return "\n".join(lines)

    def save_html(self, path: str | Path) -> Path:
        """Writes the report as one page; returns its path."""
        title = escape(f"{self.model} ({self.family})")
        page = f"<!doctype html><meta charset='utf-8'><title>{title}</title><h1>{title}</h1>"
        return write_whole(path, page + self._repr_html_())

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(told)}</td></tr>" for name, told in self.found
        )
        return (f"<table>{rows}</table>" if rows else "") + self.to_dataframe().to_html(index=False)
