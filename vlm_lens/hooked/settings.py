"""Settings of a model that its parts were made from, and that a run must still have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlm_lens.errors import ModelError

_READ = ("num_hidden_layers", "vision_feature_layer", "vision_feature_select_strategy")


def settings_of(config: Any, path: str = "config") -> Iterator[tuple[str, Any]]:
    """The settings that say which blocks run and which of them the projector reads, by path."""
    own = vars(config)
    for name in _READ:
        if name in own:
            value = own[name]
            yield f"{path}.{name}", tuple(value) if isinstance(value, list) else value
    for name in getattr(config, "sub_configs", None) or ():
        if own.get(name) is not None:
            yield from settings_of(own[name], f"{path}.{name}")


def check_settings(config: Any, known: dict[str, Any]) -> None:
    """Refuses a model of which such a setting was changed after it was wrapped.

    Raises:
        ModelError: Another value, and how to go on.
    """
    for path, value in settings_of(config):
        if path in known and value != known[path]:
            raise ModelError(
                f"hf_model.{path} was {known[path]!r} when this model was wrapped and is {value!r} "
                "now, so that points and writes here would be those of another model: wrap it "
                "again, HookedVLM(vlm.hf_model, vlm.processor), or set it back."
            )


__all__ = ["check_settings", "settings_of"]
