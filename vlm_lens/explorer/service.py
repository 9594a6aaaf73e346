"""What a served page asks for, computed on one model, one thing at a time."""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from vlm_lens.errors import VLMLensError, near_matches
from vlm_lens.explorer.encode import encode_pending, encode_run, encode_scene
from vlm_lens.explorer.page import filled, source
from vlm_lens.explorer.read import Reader, Writable, attention_blocks
from vlm_lens.explorer.rows import task_vector, told
from vlm_lens.explorer.view import Run
from vlm_lens.recipes.parts.vector_sources import Source
from vlm_lens.tasks import Task

if TYPE_CHECKING:
    from vlm_lens.model.hooked_vlm import HookedVLM

_FORM = """<form id="ask" class="ask" autocomplete="off">
<label>Or a picture of your own <input type="file" id="file" accept="image/*"></label>
<label>in the prompt <input type="text" id="text" value="{text}" size="28"></label>
<button>Run it</button></form>"""
_MOST_PIXELS = 64_000_000


class AskedError(VLMLensError):
    """A request that is not one: something missing, of the wrong type, or unknown."""


class Service:
    """Runs prompts for a page; vectors are read when they are first asked for.

    Args:
        vlm: The model.
        prompts: Name -> a prompt of one row.
        tasks: Tasks whose vectors can be written.
        text: What stands in the field for a prompt of one's own.
        source: What the vectors are read from; see `task_vectors`.
    """

    def __init__(
        self,
        vlm: HookedVLM,
        prompts: Mapping[str, Any],
        tasks: Sequence[Task],
        text: str,
        source: Source = "text",
    ):
        self.vlm, self.text, self.source = vlm, text, source
        self._readers = {
            name: Reader(vlm, vlm.as_prompt(prompt), name) for name, prompt in prompts.items()
        }
        self._plain: dict[str, Run] = {}
        self._tasks = {task.name: task for task in tasks}
        self._vectors: dict[str, Writable] = {}
        self._running = threading.Lock()  # one run at a time: a model fills its device

    def page(self) -> str:
        """The page, without any run."""
        model = {
            "name": self.vlm.name,
            "about": "",
            "blocks": self.vlm.cfg.n_layers,
            "attentionBlocks": list(attention_blocks(self.vlm)),
            "vectors": [
                {"name": n, "about": told(task, self.source)} for n, task in self._tasks.items()
            ],
            "scenes": [
                encode_pending(name, reader.prompt.images[0] if reader.prompt.images else ())
                for name, reader in self._readers.items()
            ],
        }
        return filled(
            {"models": [model]}, title=f"Explorer: {self.vlm.name}",
            footer="Blocks and heads count from 0. Every run is computed on this machine.",
            script=source("serve.js"), policy="connect-src 'self'",
            asking=_FORM.format(text=self.text.replace("\n", "\\n").replace("<", "&lt;")),
        )  # fmt: skip

    # ------------------------------------------------------------------ what is asked for

    def scene(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A prompt and its plain run: `{"scene": name}`."""
        with self._running:
            return self._scene(self._reader(asked))

    def prompt(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A new prompt: `{"text", "picture": base64 or null, "name"}`."""
        text, name = _text(asked, "text"), _text(asked, "name")
        picture = None if asked.get("picture") is None else _picture(_text(asked, "picture"))
        with self._running:
            prompt = self.vlm.prompt(text, None if picture is None else [picture])
            name, base, number = name[:60] or "prompt", name[:60] or "prompt", 1
            while name in self._readers:
                number += 1
                name = f"{base} ({number})"
            reader = Reader(self.vlm, prompt, name)
            found = self._scene(reader)
            self._readers[name] = reader
            return found

    def written(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Runs with a vector by block: `{"scene", "vector", "block"}`.

        Every block's; where these are too many numbers, all of the block asked for and the answers
        of the others, which are marked `"short"`.
        """
        name, block = _text(asked, "vector"), _number(asked, "block", self.vlm.cfg.n_layers)
        known = _known(self._tasks, name, "vector")
        with self._running:
            reader = self._reader(asked)
            if name not in self._vectors:
                self._vectors[name] = task_vector(self.vlm, known, self.source)
            vector, plain = self._vectors[name], self._plain_of(reader)
            blocks = range(self.vlm.cfg.n_layers)
            if reader.fits():
                runs = reader.written(plain, vector, blocks)
            else:
                runs = reader.answers(vector, blocks)
                [runs[block]] = reader.written(plain, vector, [block])
            labels = reader.labels(runs)
            return {
                str(b): {**encode_run(run, labels), "short": not run.positions}
                for b, run in zip(blocks, runs, strict=True)
            }

    def position(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The plain run at one more position: `{"scene", "at"}`."""
        with self._running:
            reader = self._reader(asked)
            run = reader.plain([_number(asked, "at", len(reader.prompt.layout))])
            return encode_run(run, reader.labels([run]))

    def _reader(self, asked: Mapping[str, Any]) -> Reader:
        return _known(self._readers, _text(asked, "scene"), "prompt")

    def _plain_of(self, reader: Reader) -> Run:
        if reader.name not in self._plain:
            self._plain[reader.name] = reader.plain()
        return self._plain[reader.name]

    def _scene(self, reader: Reader) -> dict[str, Any]:
        scene = reader.of_runs(self._plain_of(reader), {}, {})
        found = encode_scene(scene)
        rows = {name: {r.input: r.output for r in task.test} for name, task in self._tasks.items()}
        found["expected"] = {n: row[reader.name] for n, row in rows.items() if reader.name in row}
        return found


def _text(asked: Mapping[str, Any], key: str) -> str:
    if not isinstance(asked.get(key), str):
        raise AskedError(f"{key!r} is missing, or is no text.")
    return asked[key]


def _number(asked: Mapping[str, Any], key: str, below: int) -> int:
    value = asked.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise AskedError(f"{key!r} is a whole number from 0 to {below - 1}, not {value!r:.40}.")
    return value


def _known(known: Mapping[str, Any], name: str, what: str) -> Any:
    if name not in known:
        raise AskedError(f"There is no {what} {name[:60]!r}.{near_matches(name, known)}")
    return known[name]


def _picture(encoded: str) -> Image.Image:
    try:
        picture: Image.Image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=True)))
        if picture.width * picture.height > _MOST_PIXELS:
            raise AskedError(
                f"The picture has {picture.width} x {picture.height} pixels, more than "
                f"{_MOST_PIXELS:,}: make it smaller first."
            )
        picture.load()
    except (binascii.Error, UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise AskedError(f"'picture' cannot be read as a picture: {error}") from error
    return ImageOps.exif_transpose(picture)
