"""Recipes from YAML files: the same dataclasses, with errors that name the field and its line.

    recipe: CrossModalPatch
    model: toy-llava
    tasks: [country-capital, food-color]
    source: text
    query: image
    seeds: 2

A task of one's own is a mapping: `{csv: fruit.csv, instruction: "The colour of the fruit:"}` or
`{folder: data, name: country-capital}`, with what else `Task.from_csv` and `Task.from_folder` take;
paths start at the file.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_lens.errors import VLMLensError, near_matches
from vlm_lens.recipes.base import Recipe, RecipeError
from vlm_lens.tasks import Task

__all__ = ["load_recipe", "recipe_classes"]

_CLASS = "recipe"
_TASK_MAKERS = {"csv": Task.from_csv, "folder": Task.from_folder}


def recipe_classes(code: str | Path | None = None) -> dict[str, type[Recipe]]:
    """The recipes that a file can name.

    Args:
        code: A Python file with recipes of one's own, which is executed.

    Raises:
        RecipeError: No such file, or it holds no recipe.
    """
    import vlm_lens.recipes

    known = {
        name: value
        for name, value in ((n, getattr(vlm_lens.recipes, n)) for n in vlm_lens.recipes.__all__)
        if inspect.isclass(value) and issubclass(value, Recipe) and not inspect.isabstract(value)
    }
    return known if code is None else known | _own_classes(Path(code))


def load_recipe(path: str | Path, *, code: str | Path | None = None) -> Recipe:
    """Reads a recipe from a YAML file and checks every field.

    Args:
        path: The file.
        code: A Python file with recipes of one's own, which is executed.

    Returns:
        The recipe.

    Raises:
        RecipeError: No such file, no YAML, an unknown recipe or field, a field given twice, or a
            value that it cannot have; the message names the field and its line.
    """
    path = Path(path)
    given, lines = _read(path)
    name = given.pop(_CLASS, None)
    classes = recipe_classes(code)
    if name not in classes:
        raise RecipeError(
            _at(path, lines, _CLASS) + (
                f"there is no recipe {name!r}.{near_matches(str(name), classes)}"
                if name is not None
                else f"the file says no '{_CLASS}:'."
            )
            + f" There are: {', '.join(sorted(classes))}."
        )  # fmt: skip
    cls = classes[name]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in given:
        if key not in fields:
            raise RecipeError(
                f"{_at(path, lines, key)}{name} has no field {key!r}."
                f"{near_matches(str(key), fields)} Its fields: {', '.join(fields)}."
            )
    missing = [
        key
        for key, field in fields.items()
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and key not in given
    ]
    if missing:
        raise RecipeError(f"{path}: {name} needs {', '.join(missing)}.")
    values = {}
    for key, value in given.items():
        try:
            values[key] = _value(value, path.parent)
        except VLMLensError as error:
            raise RecipeError(f"{_at(path, lines, key)}{name}.{key}: {error}") from error
    try:
        return cls(**values)
    except VLMLensError as error:
        raise RecipeError(_at(path, lines, _named(str(error), name, given)) + str(error)) from error


def _named(message: str, recipe: str, given: Mapping[str, Any]) -> str | None:
    """The field that an error is about: it is named, or one of its values is quoted."""
    for key, value in given.items():
        values = value if isinstance(value, list) else [value]
        quoted = any(isinstance(one, str) and repr(one) in message for one in values)
        if f"{recipe}.{key} " in message or quoted:
            return key
    return None


def _value(value: Any, folder: Path) -> Any:
    """Lists as tuples, mappings that describe a task as Tasks."""
    if isinstance(value, list):
        return tuple(_value(one, folder) for one in value)
    if not isinstance(value, Mapping):
        return value
    kinds = [kind for kind in _TASK_MAKERS if kind in value]
    if len(kinds) != 1:
        raise RecipeError(
            f"{dict(value)!r} is no task: a task of one's own has either 'csv', the path of a "
            "table, or 'folder'."
        )
    make = _TASK_MAKERS[kinds[0]]
    options = {k: v for k, v in value.items() if k != kinds[0]}
    known = [p for p in inspect.signature(make).parameters if p not in ("path", "folder")]
    for key in options:
        if key not in known:
            raise RecipeError(
                f"a task from a {kinds[0]} has no {key!r}.{near_matches(str(key), known)} It can "
                f"have: {', '.join(known)}."
            )
    if options.get("images") is not None:
        options["images"] = folder / options["images"]
    if kinds[0] == "csv" and "instruction" not in options:
        raise RecipeError("a task from a csv needs an 'instruction', which ends in a colon.")
    return make(folder / str(value[kinds[0]]), **options)


# ---------------------------------------------------------------------------- files


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The fields, and the line on which each stands."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        given = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path} is not YAML: {error}") from None
    if not isinstance(given, dict):
        raise RecipeError(f"{path} holds no fields: write one 'field: value' a line.")
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.value in lines:  # YAML would silently keep the last
            raise RecipeError(
                f"{path}, line {line}: {key.value!r} stands on line {lines[key.value]} already."
            )
        lines[key.value] = line
    return given, lines


def _at(path: Path, lines: Mapping[str, int], key: str | None) -> str:
    return f"{path}, line {lines[key]}: " if key in lines else f"{path}: "


def _own_classes(path: Path) -> dict[str, type[Recipe]]:
    if not path.is_file():
        raise RecipeError(f"There is no Python file {path}.")
    name = f"recipes_of_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Recipe) and value.__module__ == name
    }
    if not own:
        raise RecipeError(f"{path} defines no recipe: a class that inherits from Recipe.")
    return own
