"""Which modules' outputs a result is made of: told by the graph of the one run that gave it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.points.sites import OutputSite, submodule


class Reached:
    """Notes what modules give, so that autograd's graph tells which of it reached a result.

    Nothing is differentiated: the graph is walked from the result, and a module whose output is not
    met on the way was not read. A result that has no graph (codes of a picture, code that runs
    without gradients) tells nothing.
    """

    def __init__(self):
        self._paths: dict[Any, set[str]] = {}  # by the node of the graph that made an output

    @contextmanager
    def watching(self, model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
        """Notes what these modules give while open; values stay the same numbers."""
        handles = [
            submodule(model, path).register_forward_hook(self._note(path)) for path in paths
        ]  # fmt: skip
        try:
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def of(self, result: Tensor) -> set[str]:
        """The paths of the modules whose last output the result is made of."""
        found: set[str] = set()
        seen, ahead = set(), [result.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            found |= self._paths.get(node, set())
            ahead += [following for following, _ in node.next_functions]
        return found

    def _note(self, path: str) -> Any:
        site = OutputSite(path)

        def hook(module: nn.Module, args: tuple, output: Any) -> Any:
            given = site.get(output)
            if not isinstance(given, Tensor) or not given.is_floating_point():
                return None
            if given.grad_fn is not None:
                self._paths.setdefault(given.grad_fn, set()).add(path)
                return None
            # where the graph begins; no leaf and no view, as what the model changes in place may be
            if not torch.is_grad_enabled():
                return None
            begun = given.detach().requires_grad_().clone()
            self._paths.setdefault(begun.grad_fn, set()).add(path)
            return site.put(output, begun)

        return hook
