"""What keeps hooks from acting, or a replay from being the run, found before it and named."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from torch import nn

from vlm_lens.errors import ModelError
from vlm_lens.storage.identity import changes_of_others


def check_not_compiled(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuses modules whose compiled code calls no hooks.

    Args:
        model: The model.
        paths: Paths of the modules that hooks are put on.

    Raises:
        ModelError: One of them, or a module around it, is compiled.
    """
    for name, module in _around(model, paths):
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        if compiled or "_orig_mod" in module._modules:
            raise ModelError(
                f"{name or 'The model'} is compiled, and compiled code calls no hooks, so nothing "
                "could be read or changed there: use the model as it is before compile() or "
                "torch.compile(...)."
            )


def _around(model: nn.Module, paths: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Each module on the way from the model to those at some paths, once."""
    seen = {"": model}
    yield "", model
    for path in sorted(paths):
        name, module = "", model
        for part in path.split(".") if path else ():
            name = f"{name}.{part}" if name else part
            if name not in seen:
                seen[name] = module.get_submodule(part)
                yield name, seen[name]
            module = seen[name]


def check_not_checkpointing(model: nn.Module) -> None:
    """Refuses gradient checkpointing, which runs blocks again when the hooks are off.

    Raises:
        ModelError: A module would be run again in the backward pass.
    """
    if any(getattr(m, "gradient_checkpointing", False) and m.training for m in model.modules()):
        raise ModelError(
            "With gradient checkpointing the backward pass runs the blocks again, when the hooks "
            "of this run are off, so that its gradients would be those of another run: call "
            "gradient_checkpointing_disable() or eval() on the model."
        )


def warn_if_training(model: nn.Module) -> None:
    """Says that a model in training mode gives other numbers in every run, where it does."""
    if model.training and (why := _what_training_changes(model)):
        warnings.warn(
            f"The model is in training mode and has {why}, so that no two runs give the same: call "
            "eval() on the Hugging Face model for repeatable runs.",
            stacklevel=2,
        )


def _what_training_changes(model: nn.Module) -> str:
    for name, module in model.named_modules():
        if not module.training:
            continue
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return f"batch norms ({name}), which such a run also changes"
        shares = {k: v for k, v in vars(module).items() if "drop" in k or k == "p"}
        if any(isinstance(v, float) and v > 0 for v in shares.values()):
            return f"dropout ({name})"
    return ""


def no_replay_with(model: nn.Module) -> str:
    """Why a replay may not be the run: code of others on the model; empty where there is none.

    A replay computes some positions apart, or behind the prompt. A torch hook that changes the last
    position, or the third, would change another one there.
    """
    for module in _all_modules(model):
        if changes := changes_of_others(module):
            name = next(name for name, m in model.named_modules() if m is module)
            what = "a forward of its own" if "forward" in changes else "torch hooks of others"
            return f"{name or 'the model'} has {what}, which may go by where positions stand"
    return ""


def _all_modules(model: nn.Module) -> list[nn.Module]:
    """A model's modules; without their names, which take most of the time of `modules()`."""
    found = [model]
    for module in found:
        found.extend(child for child in module._modules.values() if child is not None)
    return found
