"""Models and processors by zoo name, folder, short name of a checkpoint, or Hub id."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from vlm_lens.errors import ModelError, near_matches
from vlm_lens.model.assembled import base_name, put_together
from vlm_lens.model.checkpoints import CHECKPOINTS, Checkpoint, apply_settings
from vlm_lens.model.gguf import dequantized
from vlm_lens.model.packaged import where_is

_HUB_OPTIONS = (
    "revision", "trust_remote_code", "token", "cache_dir", "local_files_only", "subfolder",
    "force_download", "proxies",
)  # fmt: skip


def load(name: str | Path, **options: Any) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor.

    Args:
        name: A zoo name, a folder, the short name of a checkpoint (`vlm_lens.model.checkpoints`),
            which is loaded at its revision and with its settings, or a Hub id; the first that it
            is.
        **options: `revision`, `dtype`, `device_map`, `quantization_config`,
            `attn_implementation`, `trust_remote_code` and whatever else transformers'
            `from_pretrained` takes; `processor` overrides the checkpoint's own; `gguf_file` is
            the name of a GGUF file in the folder or repository, whose weights are dequantised
            once (`vlm_lens.model.gguf`).

    Raises:
        ModelError: No family for this model, or nothing of that name.
        FileError: Weights that are to be dequantised cannot be kept in the cache.
    """
    processor = options.pop("processor", None)
    if "torch_dtype" in options:
        raise ModelError("Write dtype=..., not torch_dtype=...: transformers 5 renamed it.")
    _check_dtype(options.get("dtype"))
    where, checkpoint = find(name)
    if checkpoint is not None:
        options.setdefault("revision", checkpoint.revision)
    options.setdefault("trust_remote_code", False)  # left open, transformers asks on the terminal
    hub = {k: options[k] for k in _HUB_OPTIONS if k in options}
    if (gguf_file := options.pop("gguf_file", None)) is not None:
        where = str(dequantized(_gguf_path(where, gguf_file, hub)))
    elif checkpoint is not None:
        where = where_is(checkpoint, **hub)
    config = read_config(name, where, **hub)
    _check_described(config)
    with _consent(name):
        if (base := base_name(where)) is not None:
            language_model, _ = load(base, dtype=torch.float32)
            model = put_together(config, where, language_model, **options)
        else:
            model = _auto_class(config).from_pretrained(where, **options)
        if processor is None:
            processor = _load_processor(config, where, **hub)
            if checkpoint is not None:
                apply_settings(checkpoint, processor)
    return model.eval(), processor


def find(name: str | Path) -> tuple[str, Checkpoint | None]:
    """What transformers calls a model, and the checkpoint whose short name `name` is, if any.

    Raises:
        ModelError: A name that nothing has; the Hub is not asked for it.
    """
    from vlm_lens import zoo

    text, shipped = str(name), zoo.names()
    if text in shipped:
        return str(zoo.path(text)), None
    if Path(name).is_dir():
        _check_folder(Path(name))
        return text, None
    if text in CHECKPOINTS:
        return CHECKPOINTS[text].repo, CHECKPOINTS[text]
    if "/" not in text and "\\" not in text:
        raise ModelError(
            f"{text!r} is not a zoo model ({', '.join(shipped)}), not a folder, not the short name "
            f"of a checkpoint ({', '.join(CHECKPOINTS)}), and not a Hub id, which has a '/'."
            + near_matches(text, [*shipped, *CHECKPOINTS])
        )
    return text, None


def check_device(device: str | torch.device) -> None:
    """Refuses a device that torch does not know.

    Raises:
        ModelError: With what was asked.
    """
    try:
        torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ModelError(
            f"There is no device {device!r}: write 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error


def _check_dtype(dtype: Any) -> None:
    if not isinstance(dtype, str) or dtype == "auto":
        return
    if not isinstance(getattr(torch, dtype.removeprefix("torch."), None), torch.dtype):
        raise ModelError(
            f"There is no dtype {dtype!r}: write 'auto', 'float32', 'float16' or 'bfloat16'."
        )


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds no model of its own.

    Raises:
        ModelError: An adapter, which needs its base model; a file that is no folder of a model.
    """
    adapter = folder / "adapter_config.json"
    if not adapter.is_file() or (folder / "config.json").is_file():
        return
    try:
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError):
        base = None
    raise ModelError(
        f"{folder} holds a PEFT adapter, made for {base or 'a base that it does not name'}, and no "
        "model. Load the base and put the adapter on it: "
        "HookedVLM(PeftModel.from_pretrained(base, folder), processor)."
    )


def _gguf_path(where: str, file: str, hub: dict[str, Any]) -> Path:
    """A GGUF file in a folder, or fetched from the Hub.

    Raises:
        ModelError: There is none of that name.
    """
    path = Path(where) / file
    if Path(where).is_dir():
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in Path(where).glob("*.gguf"))) or "none"
            raise ModelError(f"{where} has no GGUF file {file!r}; it has: {there}.")
        return path
    from huggingface_hub import hf_hub_download

    known = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "force_download")
    try:
        return Path(hf_hub_download(where, file, **{k: hub[k] for k in known if k in hub}))
    except OSError as error:
        raise ModelError(
            f"{file!r} of {where} could not be had from the Hub: {str(error).splitlines()[0]}"
        ) from error


def read_config(name: str | Path, where: str, **hub: Any) -> Any:
    """The config of a model, without its weights.

    Args:
        name: What the user called it, for messages.
        where: What transformers calls it; see `find`.
        **hub: `revision` and other options of the Hub.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    from transformers import AutoConfig

    from vlm_lens import zoo

    try:
        with _consent(name):
            return AutoConfig.from_pretrained(where, **{"trust_remote_code": False} | hub)
    except ModelError:
        raise
    except OSError as error:
        said = str(error).splitlines()[0]
        if str(name) != str(where):
            raise ModelError(
                f"{str(name)!r} stands for {str(where)!r}, which could not be read from the Hub or "
                f"its cache: {said}"
            ) from error
        raise ModelError(
            f"{name!r} is not a zoo model ({', '.join(zoo.names())}), not a folder with a "
            f"config.json, and could not be read from the Hub: {said}"
        ) from error
    except ValueError as error:
        raise ModelError(f"The config of {name!r} cannot be read: {error}") from error


@contextmanager
def _consent(name: str | Path) -> Iterator[None]:
    """Says what to do where a repository brings code of its own, which is run if passed only."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ModelError(
            f"{name!r} brings Python code of its own, which has not been run. If you have read it "
            "and trust it, pass trust_remote_code=True."
        ) from error


def _check_described(config: Any) -> None:
    """Refuses an architecture that cannot be described, before gigabytes are read."""
    from vlm_lens.families import families, family_of

    if config.model_type in families():
        return
    with torch.device("meta"):
        try:
            empty = _auto_class(config).from_config(config)
        except ValueError as error:
            raise ModelError(
                f"No family is registered for models of type {config.model_type!r}, and "
                f"transformers' {_auto_class(config).__name__} does not know that type either."
            ) from error
    family_of(config).architecture(empty)


def _auto_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from vlm_lens.families import family_of

    return AutoModelForImageTextToText if family_of(config).takes_images else AutoModelForCausalLM


def _load_processor(config: Any, where: str, **hub: Any) -> Any:
    from transformers import AutoProcessor, AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    from vlm_lens.families import family_of

    family = family_of(config)
    if not family.takes_images:
        return AutoTokenizer.from_pretrained(where, **hub)
    own = family.load_processor(config, where, **hub)
    if own is not None:
        return own
    if not is_torchvision_available() and type(config) in PROCESSOR_MAPPING:
        cls: Any = PROCESSOR_MAPPING[type(config)]
        if "video_processor" in cls.get_attributes():
            return without_video(cls).from_pretrained(where, **hub)
    return AutoProcessor.from_pretrained(where, **hub)


def without_video(cls: Any) -> Any:
    """A processor class that reads no videos.

    Video processors of transformers need torchvision, and a processor that has one cannot be made
    without it, although its pictures need no torchvision.
    """

    def get_attributes(made: type) -> list[str]:
        return [a for a in cls.get_attributes() if a != "video_processor"]

    return type(
        cls.__name__,
        (cls,),
        {
            "__init__": _optional(cls.__init__, "video_processor"),
            "get_attributes": classmethod(get_attributes),
            "__module__": cls.__module__,
        },
    )


def _optional(init: Any, name: str) -> Any:
    """The same function with `None` for its last argument without a default, if that is `name`."""
    code, defaults = init.__code__, init.__defaults__ or ()
    if code.co_varnames[code.co_argcount - len(defaults) - 1] != name:
        return init
    # transformers reads the argument names off the code object, so a wrapper would hide them
    return FunctionType(code, init.__globals__, code.co_name, (None, *defaults), init.__closure__)
