"""Which list of modules the blocks of a tower are, found in a recorded run."""

from __future__ import annotations

from torch import nn

from vlm_lens.families.parts.recording import Recording


def list_of_blocks(model: nn.Module, text: str, recording: Recording) -> str | None:
    """The largest list of modules that each take and give a stream of one shape.

    Args:
        model: The model.
        text: Path of the text model's blocks.
        recording: The run.
    """
    best, size = None, (False, 0)
    towers = [
        p for p, m in model.named_modules()
        if p and getattr(m, "config", None) is getattr(model.config, "vision_config", model)
    ]  # fmt: skip
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module) or path.startswith(text):
            continue
        calls = [recording.calls.get(f"{path}.{i}") for i in range(len(module))]
        if any(c is None or c.gave is None or not c.gave.is_floating_point() for c in calls):
            continue
        if not all(any(x.shape == c.gave.shape for x in c.given.values()) for c in calls):
            continue
        shapes = {c.gave.shape[-1] for c in calls}
        inside = any(path.startswith(f"{t}.") for t in towers)
        n = (inside, sum(p.numel() for p in module.parameters()))
        if calls[0].gave.dim() == 4 and any(isinstance(m, nn.Conv2d) for m in module.modules()):
            continue  # a map with its width not last
        # a map has its width last only where some weights of the block are as wide
        wide = any(p.shape == (calls[0].gave.shape[-1],) for p in module[0].parameters())
        if len(shapes) == 1 and n > size and calls[0].gave.dim() in (2, 3, 4) and wide:
            best, size = path, n
    return best


def list_of_maps(model: nn.Module, text: str, recording: Recording, read: set[str]) -> str | None:
    """The last list of modules of one kind that pass on a map `[image, width, rows, cols]`.

    Args:
        model: The model.
        text: Path of the text model's blocks.
        recording: The run.
        read: What its result is made of; of a list of which it is not, nothing is shown.
    """
    order = list(recording.calls)
    best, last = None, -1
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or path.startswith(text):
            continue
        names = [f"{path}.{name}" for name, _ in module.named_children()]
        calls = [recording.calls.get(n) for n in names]
        if not read & {*names} or any(
            c is None or c.gave is None or c.gave.dim() != 4 for c in calls
        ):
            continue
        kinds, shapes = {type(m) for m in module}, {c.gave.shape for c in calls}
        inner = any(True for _ in next(iter(module)).children())
        if len(kinds) != 1 or len(shapes) != 1 or not inner:
            continue
        width = calls[0].gave.shape[1]
        if not any(p.shape == (width,) for p in module.parameters()):
            continue
        if not all(any(x.shape == c.gave.shape for x in c.given.values()) for c in calls):
            continue
        if order.index(names[-1]) > last:
            best, last = path, order.index(names[-1])
    return best
