"""What the package imports is what it declares, and importing it is cheap."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# distribution -> the module it gives, where the names differ
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn"}
# what is needed and not imported
USED_BY_OTHERS = {"accelerate": "transformers places weights with it, whenever a device is named"}


OTHERS = frozenset({"interop", "nnsight"})  # folders that need the extra `interop`
EXTRAS = ("ray", "real", "serve", "static")  # that the package imports when they are asked for


def module(requirement: str) -> str:
    """The module that a requirement gives."""
    name = re.match(r"[\w.-]+", requirement)[0]
    return MODULES.get(name, name.replace("-", "_"))


def imported(folder: Path, skip: frozenset[str] = frozenset()) -> dict[str, str]:
    """The top-level names imported anywhere in a folder, each with a file that does so."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        if skip & set(path.relative_to(folder).parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    return found


def test_every_dependency_is_imported_and_every_import_is_a_dependency():
    names = imported(ROOT / "vlm_lens", skip=OTHERS)
    optional = PROJECT["optional-dependencies"]
    declared = PROJECT["dependencies"] + [text for name in EXTRAS for text in optional[name]]
    known = {module(text): text for text in declared}
    used = {name: where for name, where in names.items() if name not in sys.stdlib_module_names}
    del used["vlm_lens"]
    missing = {name: where for name, where in used.items() if name not in known}
    assert not missing, "imported and not declared in pyproject.toml"
    unused = set(known) - set(used) - set(USED_BY_OTHERS)
    assert not unused, "declared in pyproject.toml and imported nowhere"


def test_libraries_of_others_are_an_extra():
    optional = {module(text) for text in PROJECT["optional-dependencies"]["interop"]}
    assert optional == {"nnsight", "transformer_lens"}
    assert not optional & set(imported(ROOT / "vlm_lens", skip=OTHERS))


def test_importing_the_package_loads_no_library():
    """Names come when they are used; a command's help waits for no torch."""
    code = "import sys, vlm_lens; print(*(m for m in sys.modules if '.' not in m))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    loaded = set(printed.stdout.split())
    assert not loaded & {module(text) for text in PROJECT["dependencies"]}


def test_naming_the_main_class_loads_no_library_for_figures_and_tables():
    code = "import sys, vlm_lens; vlm_lens.HookedVLM, vlm_lens.LogitLens; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    loaded = set(printed.stdout.split())
    assert {"torch", "vlm_lens.model.hooked_vlm"} <= loaded
    assert not loaded & {"pandas", "plotly", "scipy", "sklearn", "rich", "typer", "torchvision"}
    assert not loaded & {"transformer_lens", "nnsight"}
