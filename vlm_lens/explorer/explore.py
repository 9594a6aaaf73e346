"""`explore(vlm, prompt)`: the page as a value, shown in Jupyter and saved as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_lens.errors import VLMLensError
from vlm_lens.explorer.page import explorer_page
from vlm_lens.explorer.read import Reader, Writable, attention_blocks
from vlm_lens.explorer.rows import chosen_rows, task_vectors
from vlm_lens.explorer.view import UNNAMED, ModelView
from vlm_lens.keywords import answering
from vlm_lens.reading.vectors import TaskVector
from vlm_lens.recipes.parts.vector_sources import Source
from vlm_lens.storage.files import write_whole
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    from vlm_lens.model.hooked_vlm import HookedVLM
    from vlm_lens.prompts.maker import Pictures

_HEIGHT = 980  # pixels of the frame in a notebook


@dataclass(frozen=True, eq=False)
class Explorer:
    """The explorer's page; shows itself in Jupyter, also after export, and saves itself.

    Attributes:
        views: What each model did.
    """

    views: tuple[ModelView, ...]

    @property
    def html(self) -> str:
        """The whole page."""
        return explorer_page(self.views)

    def save(self, path: str | Path) -> Path:
        """Writes the page; it needs no other file, no network and no Python.

        Returns:
            The file.

        Raises:
            VLMLensError: The file is not called `.html`, or cannot be written.
        """
        path = Path(path)
        if path.suffix not in (".html", ".htm"):
            raise VLMLensError(f"The explorer is a page, so {path.name} should end in .html.")
        return write_whole(path, self.html)

    def __add__(self, other: Explorer) -> Explorer:
        """One page with the models of both."""
        return Explorer((*self.views, *other.views))

    def _repr_html_(self) -> str:
        # A frame keeps the page's style and script from the notebook's; `srcdoc` holds the page
        # itself, so that an exported notebook still shows it.
        return (
            f'<iframe title="vlm_lens explorer" sandbox="allow-scripts" loading="lazy" '
            f'style="width:100%;height:{_HEIGHT}px;border:1px solid rgba(128,128,128,.4)" '
            f'srcdoc="{escape(self.html)}"></iframe>'
        )

    def __repr__(self) -> str:
        told = "; ".join(
            f"{v.name}: {len(v.scenes)} prompts, {len(v.vectors)} vectors" for v in self.views
        )
        return f"Explorer({told}; .save('explorer.html'))"


@answering
def explore(
    vlm: HookedVLM,
    prompt: Any = None,
    images: Pictures = None,
    *,
    vectors: Mapping[str, TaskVector] | None = None,
    tasks: Sequence[str | Task] | str | None = None,
    source: Source = "text",
    blocks: Sequence[int] | None = None,
    rows: int = 4,
    progress: bool = True,
) -> Explorer:
    r"""A page that shows what a model answers, where it looks and what each block reads.

    Args:
        vlm: The model.
        prompt: A prompt of one row, or a mapping of names to prompts; rows of the tasks if None.
        images: Pictures, where `prompt` is text.
        vectors: Name -> a task vector that can be written at the last position.
        tasks: Tasks whose vectors are read from examples, by name or as Task, or `"all"` for the
            paper's six; with a prompt none by default, without one all.
        source: Whether these examples are given by name (`"text"`), `"image"` or
            `"description"`, or the task by its `"instruction"`.
        blocks: After which blocks vectors are written; all by default.
        rows: How many rows of each domain are shown, where there is no prompt.
        progress: Whether to show a progress bar.

    Returns:
        An `Explorer`: shows itself in Jupyter; `.save("page.html")` writes it.

    Raises:
        VLMLensError: A prompt of several rows, a vector that does not fit the model, no such task.

    Example:
        >>> from vlm_lens import HookedVLM, explore
        >>> from vlm_lens.tasks import Task
        >>> vlm = HookedVLM.from_pretrained("toy-llava")
        >>> flag = Task.load("country-capital")["Peru"].image
        >>> prompt = vlm.prompt("Q:<image>\nA:", images=[flag])
        >>> explore(vlm, prompt, tasks="country-capital").save("peru.html")  # doctest: +SKIP
    """
    bar = _bar(progress)
    if tasks is None:
        tasks = "all" if prompt is None and vectors is None else ()
    chosen = chosen_tasks(tasks)
    writable = task_vectors(vlm, chosen, source, bar)
    writable |= {name: Writable(value) for name, value in (vectors or {}).items()}
    if prompt is None:
        prompts: dict[str, Any] = dict(chosen_rows(vlm, writable, chosen, rows, bar))
    else:
        prompts = dict(prompt) if isinstance(prompt, Mapping) else {UNNAMED: prompt}
    return Explorer((model_view(vlm, prompts, writable, images=images, blocks=blocks, bar=bar),))


def chosen_tasks(tasks: Sequence[str | Task] | str) -> tuple[Task, ...]:
    """Tasks by name: `"all"` for the paper's six, one name, or several names or Tasks."""
    from vlm_lens.tasks.registry import PAPER_TASKS

    listed = PAPER_TASKS if tasks == "all" else (tasks,) if isinstance(tasks, str | Task) else tasks
    if not isinstance(listed, Iterable) or not all(isinstance(t, str | Task) for t in listed):
        raise VLMLensError(f"tasks are names of tasks, Tasks, or 'all', not {tasks!r:.60}.")
    return tuple(Task.load(task) if isinstance(task, str) else task for task in listed)


def model_view(
    vlm: HookedVLM,
    prompts: Mapping[str, Any],
    vectors: Mapping[str, Writable],
    *,
    images: Pictures = None,
    blocks: Sequence[int] | None = None,
    bar: Callable[[Iterable, str], Iterable] = lambda items, what: items,
) -> ModelView:
    """Runs every prompt, plain and with each vector after each block."""
    chosen = range(vlm.cfg.n_layers) if blocks is None else blocks
    readers = [Reader(vlm, vlm.as_prompt(given, images), name) for name, given in prompts.items()]
    scenes = tuple(reader.scene(vectors, chosen) for reader in bar(readers, "prompts"))
    return ModelView(
        vlm.name, vlm.cfg.n_layers, scenes, {name: one.about for name, one in vectors.items()},
        attention_blocks(vlm), _about(vlm),
    )  # fmt: skip


def _about(vlm: HookedVLM) -> str:
    from vlm_lens import zoo

    if vlm.name in zoo.names():
        return "small, trained for demonstration, in the package."
    return ""


def _bar(progress: bool) -> Callable[[Iterable, str], Iterable]:
    from tqdm.auto import tqdm

    return lambda items, what: tqdm(items, desc=what, disable=not progress, leave=False)
