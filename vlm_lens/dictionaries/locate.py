"""Where a dictionary's files are: shipped with the package, in a folder, or on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlm_lens.dictionaries.layouts import READERS
from vlm_lens.dictionaries.layouts.parts import Reader
from vlm_lens.dictionaries.value import DictionaryError
from vlm_lens.errors import near_matches

SHIPPED = Path(__file__).parent / "shipped"
_ENDINGS = tuple(reader.ending for reader in READERS if reader.ending)


def shipped() -> list[str]:
    """The names of the dictionaries that ship with the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/cfg.json"))


def located(where: str | Path, name: str, **hub: Any) -> tuple[Path, Reader]:
    """The folder or file of a dictionary, and who reads it.

    Args:
        where: The name of a shipped dictionary, a folder, or a Hub id.
        name: Which one, where there are several: a folder in it, or a file.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, for the Hub.

    Raises:
        DictionaryError: Nothing of that name, or of no known layout.
    """
    if str(where) in shipped() and not Path(where).is_dir():
        folder = SHIPPED / str(where)
        if name:
            raise DictionaryError(f"{where} is one dictionary; it has no {name!r}.")
    elif Path(where).exists():
        folder = _inside(Path(where), name)
    elif "/" in str(where) and not Path(where).is_absolute():
        folder = _inside(_fetched(str(where), name, hub), name)
    else:
        raise DictionaryError(
            f"{str(where)!r} is not a shipped dictionary ({', '.join(shipped()) or 'none'}), not a "
            f"folder, and not a Hub id, which has a '/'.{near_matches(str(where), shipped())}"
        )
    for reader in READERS:
        if reader.matches(folder):
            return folder, reader
    raise DictionaryError(
        f"{folder} is of no layout that is known: "
        + "; ".join(f"{' and '.join(r.files)} ({r.name})" for r in READERS)
        + _names_in(folder)
    )


def _inside(folder: Path, name: str) -> Path:
    """What `name` is in a folder.

    Raises:
        DictionaryError: There is nothing of that name, or it leads out of the folder.
    """
    if not name:
        return folder
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DictionaryError(f"{name!r} leads out of {folder}.")
    for candidate in (folder / name, *(folder / f"{name}{ending}" for ending in _ENDINGS)):
        if candidate.exists():
            return candidate
    raise DictionaryError(f"{folder} has no {name!r}{_names_in(folder, name)}")


def _names_in(folder: Path, name: str = "") -> str:
    """A clause that says which dictionaries are below a folder."""
    if not folder.is_dir():
        return "."
    found = sorted(
        {
            str((p if reader.ending else p.parent).relative_to(folder)).removesuffix(reader.ending)
            for reader in READERS
            for p in folder.rglob(reader.files[-1])
        }
        - {"."}
    )
    if not found:
        return "."
    near = near_matches(name, found) if name else ""
    return f"; below it are {', '.join(found[:8])}{', ...' if len(found) > 8 else ''}.{near}"


def _fetched(repo: str, name: str, hub: dict[str, Any]) -> Path:
    """The part of a Hub repository that a dictionary is.

    Raises:
        DictionaryError: It cannot be had.
    """
    from huggingface_hub import snapshot_download

    # a repository of many is not fetched whole because one was not named
    wanted = ["*.json", "config.yaml"] + [r.files[-1] for r in READERS if not r.ending]
    if name:
        beside = str(Path(name).parent / "config.yaml")
        wanted = [f"{name}/*", name, beside] + [f"{name}{ending}" for ending in _ENDINGS]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, **hub))
    except Exception as error:  # the Hub's errors share no base
        raise DictionaryError(
            f"{name or 'A dictionary'} of {repo} could not be had from the Hub: "
            f"{str(error).splitlines()[0]}"
        ) from error


__all__ = ["SHIPPED", "located", "shipped"]
