"""Models of the package that are shipped without the language model they stand on.

Their folder holds a tower, a projector and a low-rank update (Hu et al. 2021, arXiv 2106.09685) in
peft's format; `adapter_config.json` names the language model. They are put together when they are
loaded, into the ordinary model of transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_lens.errors import ModelError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.storage.files import read_json, read_tensors

__all__ = ["base_name", "put_together", "save_folder"]

_ADAPTER = "adapter_config.json"
_SEEING = "seeing.safetensors"
_UPDATE = "adapter_model.safetensors"


def base_name(folder: str | Path) -> str | None:
    """The language model that a folder's model stands on; `None` where it holds all of itself."""
    folder = Path(folder)
    if not (folder / _SEEING).is_file():
        return None
    return str(read_json(folder / _ADAPTER)["base_model_name_or_path"])


def put_together(config: Any, folder: str | Path, base: nn.Module, **options: Any) -> Any:
    """The whole model: the language model updated, its tokens, what sees.

    Args:
        config: Its configuration, which names its class.
        folder: Where tower, projector and update are.
        base: The language model, in float32.
        **options: `dtype`, `attn_implementation` and others of `from_pretrained`.

    Raises:
        ModelError: The update does not fit the language model.
        FileError: A file is missing or damaged.
    """
    import transformers

    folder = Path(folder)
    cls = getattr(transformers, config.architectures[0])
    state = {name: value.float() for name, value in read_tensors(folder / _SEEING)[0].items()}
    for name, value in updated(base, folder).items():
        state[f"model.language_model.{name.removeprefix('model.')}"] = value
    embedding = "model.language_model.embed_tokens.weight"
    more = config.text_config.vocab_size - len(state[embedding])
    mean = state[embedding].mean(0, keepdim=True)  # an added token stands for no word
    state[embedding] = torch.cat([state[embedding], mean.expand(more, -1)])
    state["lm_head.weight"] = state[embedding]
    config.weights = f"tower, projector and update of {folder.name} on {told(base.config)}"
    return cls.from_pretrained(None, config=config, state_dict=state, **options)


def updated(base: nn.Module, folder: Path) -> dict[str, Tensor]:
    """The language model's weights with `scale * B A` added, without its head.

    Raises:
        ModelError: The update does not fit.
    """
    settings = read_json(folder / _ADAPTER)
    scale = settings["lora_alpha"] / settings["r"]
    low, _ = read_tensors(folder / _UPDATE)
    state = {k: v for k, v in base.state_dict().items() if not k.startswith("lm_head")}
    for name, a in low.items():
        if not name.endswith(".lora_A.weight"):
            continue
        where = name.removeprefix("base_model.model.").replace(".lora_A", "")
        b = low[name.replace(".lora_A", ".lora_B")]
        if where not in state or state[where].shape != (b.shape[0], a.shape[1]):
            raise ModelError(f"The update in {folder} does not fit {where} of the language model.")
        state[where] = state[where].float() + scale * (b.float() @ a.float())
    return state


def told(config: Any) -> str:
    """Which weights a model has, in words."""
    return getattr(config, "weights", None) or f"{config._name_or_path}, as published"


def save_folder(vlm: HookedModel, folder: str | Path) -> Path:
    """Write a model and its processor as an ordinary folder of transformers.

    Args:
        vlm: The model.
        folder: Where to; it needs nothing of this package, nor the base model, to be loaded.
    """
    vlm.hf_model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return Path(folder)
