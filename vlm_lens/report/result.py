"""The report of one recipe: what came out, drawn and in numbers, and how to get it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_lens.figures.figure_html import figure_html
from vlm_lens.recipes import RecipeError, Result
from vlm_lens.report.page import Section, code, data_table, settings, write_page

__all__ = ["provenance_section", "result_report"]


def result_report(path: str | Path, result: Result, *, commands: Sequence[str] = ()) -> Path:
    """Writes the report of a result.

    Args:
        path: The HTML file; it needs no other file and no network.
        result: What a recipe gave.
        commands: What to type for the same.

    Returns:
        The file.

    Raises:
        VLMLensError: The file cannot be written.
    """
    notes = "".join(f"<p>{escape(note)}</p>" for note in result.notes)
    sections = [Section("What came out", notes + data_table(result.summary()), "Numbers")]
    try:
        drawn = [figure_html(one) for one in result.plots().values()]
    except RecipeError:  # a table without numbers has no figure
        drawn = []
    if drawn:
        sections.append(Section("Figures", "".join(drawn)))
    sections.append(provenance_section([result], commands))
    return write_page(path, result.title, "", sections)


def provenance_section(results: Iterable[Result], commands: Sequence[str] = ()) -> Section:
    """Model, versions, date and recipes of results of one model.

    Args:
        results: The results; facts are those of the first.
        commands: What to type for the same.
    """
    results = list(results)
    about = results[0].provenance
    facts = {f"model: {k}": v for k, v in about.get("model", {}).items() if v is not None}
    facts |= {f"version: {k}": v for k, v in about.get("versions", {}).items()}
    facts |= {"date": about.get("date"), "seconds": about.get("seconds")}
    body = code("\n".join(commands)) if commands else ""
    recipes = [_call(result.provenance.get("recipe", {})) for result in results]
    return Section("Settings", body + settings(facts) + code("\n\n".join(recipes)))


def _call(recipe: Mapping[str, Any]) -> str:
    """A recipe as one would type it."""
    fields = ", ".join(
        f"{k}={_typed(v)}" for k, v in recipe.items() if k != "class" and v is not None
    )
    return f"{recipe.get('class', 'Recipe')}({fields})"


def _typed(value: Any) -> str:
    if isinstance(value, Mapping) and "task" in value:  # provenance holds a digest of its rows
        return f"<task {value['task']}, {value['rows']} rows>"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_typed, value))}]"
    return repr(value)
