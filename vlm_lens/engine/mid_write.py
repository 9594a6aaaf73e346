"""A write to the stream in the middle of a block."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from vlm_lens.points.sites import OutputSite


class MidWrite:
    """A write to the stream between attention and MLP, which the block's sum must repeat.

        mid --norm--> mlp --> branch         the block returns before + branch
        new --norm--> mlp --> branch         so its output becomes new + branch

    Args:
        fire: Shows the stream to its handlers.
        branch: What the block adds to it; `None` where no module gives that.
        rows: The number of rows of the forward pass.
    """

    def __init__(
        self,
        fire: Callable[[Tensor], Tensor | None],
        branch: OutputSite | None,
        rows: Callable[[], int],
    ):
        self._fire, self._site, self._n_rows = fire, branch, rows
        self._before: Tensor | None = None
        self._new: Tensor | None = None
        self._branch: Tensor | None = None

    def write(self, x: Tensor) -> Tensor | None:
        """At the norm's input."""
        self._new = self._fire(x)
        self._before, self._branch = x, None
        return self._new

    def keep_branch(self, x: Tensor) -> None:
        """At the output of the MLP, after its own handlers."""
        if self._new is not None:
            view = self._site.view
            self._branch = view.split(x, self._n_rows()) if view else x

    def complete(self, x: Tensor) -> Tensor | None:
        """At the block's output, before its own handlers."""
        new, before, branch = self._new, self._before, self._branch
        self._new = self._before = self._branch = None
        if new is None:
            return None
        return x + (new - before) if branch is None else (new + branch).view_as(x)
