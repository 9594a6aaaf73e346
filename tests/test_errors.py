"""What errors propose exists: names, methods, keywords, and near matches of what was mistyped."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import vlm_lens
from vlm_lens import ActivationCache, HookedVLM, Layout, Pair, Pairs, Prompt, zoo
from vlm_lens.errors import VLMLensError
from vlm_lens.model.checkpoints import CHECKPOINTS
from vlm_lens.recipes.parts.from_file import load_recipe, recipe_classes
from vlm_lens.tasks import Task

ROOT = Path(vlm_lens.__file__).parent
HELD = {  # what an instance has and its class does not name
    ActivationCache: {"layouts"},
    HookedVLM: {"hf_model", "tokenizer", "processor", "cfg", "name", "prompts", "architecture"},
}
THINGS = {"vlm": HookedVLM, "prompt": Prompt, "layout": Layout, "cache": ActivationCache,
          "pair": Pair, "pairs": Pairs}  # fmt: skip
PARTS_OF = {(Prompt, "layout"), (Prompt, "layouts"), (Prompt, "inputs")}
CALL = re.compile(r"(?<![\w.])((?:vlm|pairs?|cache|[A-Z]\w+)(?:\.\w+)?)\(([^()]*)\)")


def _public() -> dict[str, object]:
    """Everything that a module of the package offers, by its name."""
    found: dict[str, object] = {}
    for module in pkgutil.walk_packages(vlm_lens.__path__, "vlm_lens."):
        if "__main__" in module.name or ".interop" in module.name:
            continue
        held = import_module(module.name)
        for name in getattr(held, "__all__", ()):
            if inspect.isclass(thing := getattr(held, name)) or inspect.isfunction(thing):
                found.setdefault(name, thing)
    return found


@pytest.fixture(scope="module")
def public() -> dict[str, object]:
    return _public()


def _text(node: ast.AST) -> str:
    """The text of a string, of pieces put together and of calls in it; \0 where a value stands."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(v) if isinstance(v, ast.Constant) else "\0" for v in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return ""


def _told() -> Iterator[tuple[str, str]]:
    """Every string of the package but docstrings, errors and reasons among them: where, and it."""
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in alone and (said := _text(node)):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", said


@pytest.fixture(scope="module")
def told() -> list[tuple[str, str]]:
    return list(_told())


def test_modules_and_names_of_the_package_that_errors_name_exist(told):
    wrong, seen = [], 0
    for where, said in told:
        for name in re.findall(r"\bvlm_lens(?:\.\w+)+(?![\w/])", said):
            seen += 1
            module, _, rest = name.rpartition(".")
            try:
                import_module(name)
            except ImportError:
                try:
                    getattr(import_module(module), rest)
                except (ImportError, AttributeError):
                    wrong.append((where, name))
    assert not wrong and seen > 10


def test_methods_that_errors_name_exist(told):
    wrong, seen = [], 0
    for where, said in told:
        for thing, method in re.findall(r"(?<![\w./])(vlm|prompt|cache|pairs?)\.(\w+)", said):
            cls = THINGS[thing]
            seen += 1
            if method in HELD.get(cls, ()) or method in getattr(cls, "__annotations__", {}):
                continue
            if not hasattr(cls, method):
                wrong.append((where, f"{thing}.{method}"))
    assert not wrong and seen > 60


def test_calls_that_errors_propose_can_be_made(public, told):
    """Each keyword is one that the function takes."""
    wrong, seen = [], 0
    for where, said in told:
        for called, given in CALL.findall(said):
            owner, _, method = called.partition(".")
            thing = THINGS.get(owner) or public.get(owner)
            if thing is None:
                continue  # of another library
            if method and not hasattr(thing, method):
                wrong.append((where, called))
                continue
            if not callable(made := getattr(thing, method) if method else thing):
                continue
            taken = inspect.signature(made).parameters
            anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
            seen += 1
            for keyword in re.findall(r"(?<![\w.])(\w+)=(?!=)", given):
                if keyword not in taken and not anything:
                    wrong.append((where, f"{called}({keyword}=)"))
    assert not wrong and seen > 60


def _proposed(wrong: str, ask) -> list[str]:
    """The names that the answer to a mistyped one proposes."""
    with pytest.raises((VLMLensError, AttributeError)) as told:
        ask(wrong)
    clause = str(told.value).partition("Did you mean ")[2].partition("?")[0]
    return re.findall(r"'([^']+)'", clause)


def _mistyped(names) -> Iterator[tuple[str, str]]:
    """Names with two letters swapped in the middle, which no name is."""
    names = list(names)
    for name in names:
        at = len(name) // 2
        wrong = name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :]
        if wrong not in names:
            yield name, wrong


@pytest.mark.parametrize("what", ["points", "globs", "models", "tasks", "recipes", "names"])
def test_what_is_proposed_for_a_mistyped_name_is_there(what, llama, tmp_path):
    points = llama.points()

    def recipe(name):
        (tmp_path / "recipe.yaml").write_text(f"recipe: {name}\ntask: country-capital\n")
        return load_recipe(tmp_path / "recipe.yaml")

    known, ask = {
        "points": ([*points], points.__getitem__),
        "globs": (sorted({re.sub(r"\.\d+\.", ".*.", n) for n in points}), points.select),
        "models": ([*zoo.names(), *CHECKPOINTS], HookedVLM.from_pretrained),
        "tasks": ([*Task.names()], Task.load),
        "recipes": ([*recipe_classes()], recipe),
        "names": ([n for n in vlm_lens.__all__ if n[0].isupper()], vlm_lens.__getattr__),
    }[what]
    found = 0
    for name, wrong in _mistyped(known):
        proposed = _proposed(wrong, ask)
        found += name in proposed
        for one in proposed:
            assert one in known or (what != "models" and ask(one)), (wrong, one)
    assert found > 0.8 * len(known)
