"""Ends a process at its n-th operation on files, as far as what it was doing can tell."""

from __future__ import annotations

import builtins
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

OPERATIONS = [
    (os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
    (os, "open"), (builtins, "open"), (shutil, "rmtree"), (Path, "mkdir"), (Path, "unlink"),
    (Path, "rmdir"), (Path, "write_text"), (Path, "write_bytes"), (Path, "open"), (Path, "rename"),
    (Path, "replace"),
]  # fmt: skip


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed_at(number: int, counted: list[str]) -> Iterator[None]:
    """From the n-th operation on nothing is done any more, clean-ups included."""

    def wrapped(original: Callable, name: str) -> Callable:
        def run(*args: Any, **options: Any) -> Any:
            if name == "open" and "r" in str((*args, "r")[1]) and "+" not in str((*args, "r")[1]):
                return original(*args, **options)
            counted.append(name)
            if len(counted) > number:
                raise Killed
            return original(*args, **options)

        return run

    patches = [patch.object(o, n, wrapped(getattr(o, n), n)) for o, n in OPERATIONS]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def at_every_operation(prepare: Callable[[], Any], save: Callable[[], Any]) -> Iterator[int]:
    """Prepares, saves and kills at the first, second, ... operation until one save ends."""
    number = 0
    while True:
        prepare()
        try:
            with killed_at(number, []):
                save()
        except Killed:
            yield number
            number += 1
        else:
            assert number > 3  # operations were seen at all
            return
