"""A tower of a type that is not described: its parts found in a recorded run of two pictures.

The model's own `get_image_features` runs once on two small pictures of noise. The tower is the
largest list of blocks that pass a stream on, or the last one that passes a map on; what is within
a block is proved by its numbers, as in a text model (`branches.py`). Which blocks are read is told
by the graph of that run (`reached.py`). The projector is the outermost module that gives what
stands in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.families.parts.branches import describe_block, unseen_block
from vlm_lens.families.parts.found_stack import activation_of, found_stack
from vlm_lens.families.parts.probe_pictures import (
    N_PICTURES,
    ProbePictures,
    evaluating,
    features_function,
    probe_pictures,
)
from vlm_lens.families.parts.reached import Reached
from vlm_lens.families.parts.recording import Recording, record, same
from vlm_lens.families.parts.stack import Stack
from vlm_lens.families.parts.tower_lists import list_of_blocks, list_of_maps
from vlm_lens.families.parts.views import RowsOfPicturesView
from vlm_lens.points.point import Point
from vlm_lens.points.sites import FeatureMapView, InputSite, OutputSite, submodule

# multiplications that the run may cost: some hundred milliseconds on a CPU
_MOST = 2e10
# that a run may cost where nothing else tells what it shows: some seconds
_MOST_BARE = 6e11
_MAP = "its blocks pass on a map of positions, of which the stream alone is shown."


@dataclass(frozen=True)
class Held:
    """How pictures stand in a tensor of the tower or the projector.

    Attributes:
        rows: Rows of each frame of a picture; 0 where all stand in one row, one after the other.
        positions: Positions of each row, or of each picture.
        patches: Patches of each picture in the run that showed it; `None` where not known.
        area: Pixels of each of its frames, where its pictures were frames.
    """

    rows: int
    positions: int
    patches: int | None
    area: int | None = None

    @classmethod
    def of(cls, shape: torch.Size, pictures: ProbePictures, times: int = 1) -> Held | None:
        """By the shape of a tensor that holds two pictures; `None` where it cannot be told.

        Args:
            shape: The tensor's.
            pictures: The pictures.
            times: How many times the module ran; what is read is joined on the axis of rows.
        """
        n_frames, patches = N_PICTURES * pictures.frames, pictures.patches
        if len(shape) == 2:
            shape = torch.Size((1, *shape))
        rows, positions = shape[0] * times, shape[1:-1].numel()
        if rows % n_frames == 0:
            return cls(rows // n_frames, positions, patches, pictures.area)
        if rows == 1 and positions % N_PICTURES == 0:
            return cls(0, positions // N_PICTURES, patches)
        return None

    def of_frame(self, area: int) -> int | None:
        """Positions of a frame of so many pixels; `None` where it cannot be told."""
        if area == self.area:
            return self.positions
        if not self.area or not self.patches or area * self.patches % self.area:
            return None
        return self.length(area * self.patches // self.area)

    def length(self, patches: int | None) -> int | None:
        """Positions of a picture of another size, in one row; `None` where it cannot be told."""
        mine, theirs = self.positions, self.patches
        if patches is None or theirs is None or patches == theirs:
            return mine
        if theirs % mine == 0:
            return patches * mine // theirs
        return patches + mine - theirs if mine > theirs else None


@dataclass(frozen=True)
class FoundTower:
    """A tower and a projector found in a larger model.

    Attributes:
        stack: The tower's blocks, if there are some.
        reads: How many of them what follows reads.
        n_class: Positions of a picture in the tower beside its patches.
        breaks: Why what leaves one of its blocks is not what enters the next, where so.
        projector: Path of the projector, if it is one module, and the name of its argument.
        tower_held: How pictures stand in the tower.
        entering: How they stand in what the projector reads.
        d_entering: The width of what it reads.
        leaving: How they stand in what it gives.
        deepstack: Whether features are added between the text model's blocks, too.
        embeds: Whether pictures pass through the token embedding.
        mapped: Whether its blocks pass on a map, `[image, width, rows, cols]`: they are those of
            its last stage, as those before have maps of other sizes.
    """

    stack: Stack | None
    reads: int = 0
    n_class: int = 0
    breaks: str = ""
    projector: tuple[str, int | str] | None = None
    tower_held: Held | None = None
    entering: Held | None = None
    d_entering: int | None = None
    leaving: Held | None = None
    deepstack: bool = False
    embeds: bool = False
    mapped: bool = False

    def projector_points(self, d_model: int) -> Iterator[Point]:
        """What enters and what leaves the projector."""
        assert self.projector is not None
        path, key = self.projector
        index, keyword = (key, "hidden_states") if isinstance(key, int) else (99, key)
        if self.entering in (self.tower_held, self.leaving) and self.entering is not None:
            space = "projector" if self.entering == self.leaving else "vision"
            yield Point("projector.hook_in", ("image", "pos", "d_vision"),
                        (None, None, self.d_entering), "What the projector reads",
                        InputSite(path, keyword, index, RowsOfPicturesView()), space)  # fmt: skip
        yield Point("projector.hook_out", ("image", "pos", "d_model"), (None, None, d_model),
                    "Picture features in the language model's width",
                    OutputSite(path, view=RowsOfPicturesView(d_model)), "projector")  # fmt: skip


def found_tower(
    model: nn.Module, config: Any, text: str, *, bare: bool = False
) -> FoundTower | None:
    """Finds tower and projector; `None` where no small picture was found that the model reads.

    Args:
        model: The model.
        config: The config of its tower.
        text: Path of the text model's blocks.
        bare: Whether a run may take some seconds on a CPU, as nothing else tells the parts.
    """
    for pictures, run in _runs(model, config, text, _MOST_BARE if bare else _MOST):
        reached = Reached()
        try:
            recording, out = _recorded(model, text, run, reached)
        except Exception:  # noqa: BLE001  whatever a model may raise on a form that is not its own
            continue
        features = features_of(out)
        if features is not None:
            return _found(model, config, text, pictures, recording, out, features, reached, run)
    return None


def _recorded(
    model: nn.Module, text: str, run: Callable[..., Any], reached: Reached
) -> tuple[Recording, Any]:
    """A recorded run whose graph tells what its result is made of, where the model has one."""
    try:
        with reached.watching(model, _members(model, text)):
            return record(model, lambda: run(graph=True))
    except Exception:  # noqa: BLE001  code that cannot be differentiated may run without a graph
        return record(model, run)


def _members(model: nn.Module, text: str) -> list[str]:
    """The modules that stand in lists, outside the text model."""
    return [
        f"{path}.{name}"
        for path, m in model.named_modules()
        if isinstance(m, nn.ModuleList | nn.Sequential) and not path.startswith(text)
        for name, child in m.named_children()
        if not isinstance(child, nn.ModuleList)
    ]


def blocks_read(model: nn.Module, config: Any, text: str, path: str, n_blocks: int) -> int | None:
    """How many of a tower's blocks what follows reads; `None` where no run shows it.

    Args:
        model: The model.
        config: The config of its tower.
        text: Path of the text model's blocks.
        path: Path of the tower's blocks.
        n_blocks: How many there are.
    """
    for _, run in _runs(model, config, text, _MOST_BARE):
        reached = Reached()
        try:
            with reached.watching(model, [f"{path}.{i}" for i in range(n_blocks)]):
                features = features_of(run(graph=True))
            if features is not None:
                read = reached.of(features)
                return _reads(model, path, n_blocks, run, features, read)
        except Exception:  # noqa: BLE001  whatever a model may raise on a form that is not its own
            continue
    return None


def _runs(
    model: nn.Module, config: Any, text: str, most: float
) -> Iterator[tuple[ProbePictures, Callable[..., Any]]]:
    """Runs of small pictures in forms that the model may take, on a CPU none dearer than that."""
    function = features_function(model)
    if function is None or any(p.is_meta for p in model.parameters()):
        return
    cost = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(text))
    on_cpu = next(model.parameters()).device.type == "cpu"
    for pictures in probe_pictures(model, config):
        dear = cost * (pictures.patches or 0) * N_PICTURES > most
        if not (dear and on_cpu):
            yield pictures, _runner(model, function, pictures)


def _runner(model: nn.Module, function: Callable, pictures: ProbePictures) -> Callable[..., Any]:
    def run(graph: bool = False) -> Any:
        with evaluating(model, graph=graph):
            return function(**pictures.tensors)

    return run


def features_of(out: Any) -> Tensor | None:
    """What stands in the text, `[pos, d_model]`."""
    pooled = getattr(out, "image_embeds", None)
    if pooled is None:
        pooled = getattr(out, "pooler_output", None)
    deep = getattr(out, "deepstack_features", None)
    if pooled is None and deep and isinstance(deep[0], tuple):  # (text block, features of pictures)
        pooled = deep[0][1]
    if pooled is None:
        pooled = getattr(out, "last_hidden_state", out)
    if isinstance(pooled, list | tuple):
        if not pooled or not all(isinstance(x, Tensor) for x in pooled):
            return None
        pooled = torch.cat([x.reshape(-1, x.shape[-1]) for x in pooled])
    return pooled.reshape(-1, pooled.shape[-1]) if isinstance(pooled, Tensor) else None


def _found(
    model: nn.Module, config: Any, text: str, pictures: ProbePictures, recording: Recording,
    out: Any, features: Tensor, reached: Reached, run: Callable[..., Any],
) -> FoundTower:  # fmt: skip
    path, read = list_of_blocks(model, text, recording), reached.of(features)
    mapped = path is None
    path = list_of_maps(model, text, recording, read) if mapped else path
    width = model.get_input_embeddings().weight.shape[-1]
    projector = _projector(recording, path, features) if features.shape[-1] == width else None
    deep = getattr(out, "deepstack_features", None) is not None
    entering = leaving = d_entering = None
    if projector is not None:
        call = recording.calls[projector[0]]
        times = len(recording.outputs[projector[0]])
        given = call.given[projector[1]].shape
        entering = Held.of(given, pictures, times)
        d_entering = given[-1]
        leaving = Held.of(call.gave.shape, pictures, times)
    found = FoundTower(
        None, projector=projector, entering=entering, d_entering=d_entering, leaving=leaving,
        deepstack=deep,
        embeds=any(
            submodule(model, p) is model.get_input_embeddings() for p in recording.calls
        ),
    )  # fmt: skip
    if path is None:
        return found
    blocks = submodule(model, path)
    ends = [_shown(recording.calls[f"{path}.{i}"].gave, mapped) for i in range(len(blocks))]
    keys = [_stream_key(recording, f"{path}.{i}") for i in range(len(blocks))]
    entering_blocks = [
        _shown(recording.calls[f"{path}.{i}"].given[key], mapped) for i, key in enumerate(keys)
    ]
    single = ends[0].dim() == 2
    activation = activation_of(config)
    described = [
        unseen_block(_MAP) if mapped else describe_block(
            block, f"{path}.{i}", entering_blocks[i], recording, activation, 1.0, single=single
        )
        for i, block in enumerate(blocks)
    ]  # fmt: skip
    if ends[0].dim() > 3:
        for block in described:
            names = [*block.sites]
            block.sites.clear()
            block.lack(tuple(names), "its blocks pass on a map of patches.")
    for i, block in enumerate(described):
        if recording.calls[f"{path}.{i}"].overwritten:
            block.lack(("hook_resid_post",), "the model changes it in place.")
    d_model = ends[0].shape[-1]
    view = FeatureMapView() if mapped else RowsOfPicturesView()
    stack = found_stack(path, config, described, keys, d_model, view)
    held = Held.of(ends[0].shape, pictures)
    breaks = [i for i in range(1, len(ends)) if not same(entering_blocks[i], ends[i - 1])]
    reads = _reads(model, path, len(blocks), run, features, read)
    stack = replace(
        stack, prefix="vision.", space="vision", unread_from=reads,
        unread=f"what follows the tower reads block {reads - 1}, so nothing reads this one",
    )  # fmt: skip
    n_class = 0
    if held is not None and pictures.patches and held.rows <= 1 and not mapped:
        n_class = max(0, held.positions - pictures.patches)
    return replace(
        found, stack=stack, reads=reads, n_class=n_class, tower_held=held, mapped=mapped,
        breaks=f"the tower changes its stream before block {breaks[0]}" if breaks else "",
    )  # fmt: skip


def _stream_key(recording: Recording, block: str) -> int | str:
    call = recording.calls[block]
    return next(k for k, x in call.given.items() if x.shape == call.gave.shape)


def _shown(x: Tensor, mapped: bool) -> Tensor:
    return FeatureMapView().split(x, len(x)) if mapped else x


def _projector(
    recording: Recording, blocks: str | None, features: Tensor
) -> tuple[str, int | str] | None:
    """The outermost module, outside the tower's blocks, that gives what stands in the text."""
    found = []
    for path, call in recording.calls.items():
        if call.gave is None or not call.given or not same(_joined(recording, path), features):
            continue
        if blocks and (path.startswith(f"{blocks}.") or blocks.startswith(f"{path}.")):
            continue
        if call.gave.dim() in (2, 3, 4) and call.gave.shape[-1] == features.shape[-1]:
            found.append(path)
    if not found:
        return None
    path = min(found, key=lambda p: (p.count("."), -list(recording.calls).index(p)))
    given = recording.calls[path].given
    return path, max(given, key=lambda k: given[k].numel())


def _joined(recording: Recording, path: str) -> Tensor:
    """What all calls of a module gave, one after the other."""
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in recording.outputs[path]])


@torch.no_grad()
def _reads(
    model: nn.Module, path: str, n_blocks: int, run: Callable[..., Any], features: Tensor,
    read: set[str],
) -> int:  # fmt: skip
    """How many blocks lie on the way to the features, by the graph; else by writes to the last."""
    for i in reversed(range(n_blocks)):
        if f"{path}.{i}" in read:
            return i + 1
    for i in reversed(range(n_blocks)):

        def changed(module: nn.Module, args: Any, output: Any) -> Any:
            x = output if isinstance(output, Tensor) else output[0]
            new = x + torch.linspace(-1, 1, x.shape[-1], device=x.device).to(x)
            return new if isinstance(output, Tensor) else (new, *output[1:])

        handle = submodule(model, f"{path}.{i}").register_forward_hook(changed, prepend=True)
        try:
            if not torch.equal(features_of(run()), features):
                return i + 1
        finally:
            handle.remove()
    return n_blocks
