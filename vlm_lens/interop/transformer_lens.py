"""TransformerLens beside this package: the same weights, and caches that go both ways.

`to_bridge` wraps a copy of a model in a `TransformerBridge`, and `model_of` makes a model anew of a
bridge's weights; `to_cache` hands what was read here to its analysis tools, and `from_cache` takes
what a bridge has read.

TransformerLens changes the model that it wraps (submodules are replaced, attention becomes eager),
so neither direction ever hands over the user's own. With pictures in the prompt some of its tools
are wrong, measured with version 4.3; a cache from here corrects or refuses these:

- `decompose_resid` starts at the text's embedding, before the pictures' features are placed. Here
  `hook_embed` is what enters the first block, `hook_merged`.
- The others are drawn in `transformer_lens_cache`; its `patching` module, which runs prompts
  without their pictures, runs here by `transformer_lens_patching`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm_lens.errors import ModelError, PointError, near_matches
from vlm_lens.hooked.cache import ActivationCache
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.layout import Layout
from vlm_lens.prompts.prompt import Prompt

try:
    from transformer_lens import ActivationCache as TheirCache
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
except ImportError as error:  # an extra
    raise ModelError(
        f"TransformerLens cannot be imported ({error}): pip install 'vlm-lens[interop]'."
    ) from error

from vlm_lens.interop.transformer_lens_cache import CacheOfVLM, Corrections

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPED = "_original_component"  # what a bridge calls the module that it stands for
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}  # logits of both, by their spread
_CLOSE_IN_HALF = 0.1
_NORMS = {"ln1": "hook_resid_pre", "ln2": "hook_resid_mid"}  # a norm in a block -> what it reads


def to_bridge(vlm: HookedModel) -> TransformerBridge:
    """TransformerLens's bridge around a copy of a model.

    The copy takes the model's memory once more. The model itself keeps its modules and its
    attention implementation.

    Args:
        vlm: The model, in float32 or another dtype, on one device.

    Returns:
        The bridge, in evaluation mode, with its weights as they are (not folded or centred).

    Raises:
        ModelError: TransformerLens has no adapter for the model's class, or its bridge computes
            other logits than the model.
    """
    model = vlm.hf_model
    architecture = type(model).__name__
    twin = copy.deepcopy(model)
    tokenizer = copy.deepcopy(vlm.tokenizer)
    if tokenizer is not None and not getattr(tokenizer, "init_kwargs", {}).get("name_or_path"):
        raise ModelError(
            "TransformerLens reads a tokenizer again from where it was loaded, and this one was "
            "made in memory: save it, tokenizer.save_pretrained(folder), and load it from there."
        )
    try:
        bridge = build_bridge_from_module(
            twin, architecture, hf_config=twin.config, tokenizer=tokenizer,
            dtype=vlm.dtype, device=str(vlm.device), model_name=vlm.name,
        )  # fmt: skip
    except (ValueError, KeyError, AttributeError, NotImplementedError, ImportError) as error:
        known = _architectures()
        near = "" if architecture in known else near_matches(architecture, known)
        raise ModelError(
            f"TransformerLens builds no bridge for {architecture}: {error}{near}"
        ) from error
    bridge.eval()
    _check_logits(vlm.hf_model, bridge, "The bridge")
    return bridge


def model_of(bridge: TransformerBridge) -> PreTrainedModel:
    """A model made anew of a bridge's weights; see `HookedVLM.from_bridge`.

    The bridge is left as it is; the new model takes the weights' memory once more.

    Args:
        bridge: A bridge around a Hugging Face model, its weights not processed.

    Raises:
        ModelError: The bridge's weights were processed (`enable_compatibility_mode`), it holds no
            Hugging Face model, or the new model computes other logits.
    """
    if getattr(bridge, "_weights_processed", False):
        raise ModelError(
            "This bridge's weights have been processed (enable_compatibility_mode folds norms and "
            "centres weights): make the HookedVLM from a fresh bridge."
        )
    wrapped = getattr(bridge, "original_model", None)
    config = getattr(wrapped, "config", None)
    if config is None or not hasattr(type(wrapped), "_from_config"):
        raise ModelError(
            f"{type(bridge).__name__} holds no model of transformers, so it cannot be wrapped "
            "here: pass what TransformerBridge.boot_transformers gives."
        )
    weights = _unwrapped(wrapped)
    dtype = next(t.dtype for t in weights.values() if t.is_floating_point())
    model = type(wrapped)._from_config(
        copy.deepcopy(config), attn_implementation="sdpa", dtype=dtype
    )
    _load(model, weights)
    model = model.to(next(wrapped.parameters()).device).eval()
    model.generation_config = copy.deepcopy(wrapped.generation_config)
    _check_logits(model, bridge, "The model made of the bridge's weights")
    return model


def to_cache(cache: ActivationCache, vlm: HookedModel, bridge: TransformerBridge) -> TheirCache:
    """A cache from here as TransformerLens's, for its tools: `logit_lens(bridge, cache=...)`.

    Names are TransformerLens's; scales of norms are computed from what the norms read, where that
    was read. The module's head says what is corrected and what is refused.

    Args:
        cache: What `vlm.run_with_cache` has read, all positions of it.
        vlm: The model.
        bridge: The bridge of the same model.

    Raises:
        PointError: The cache kept some positions only, or nothing that the bridge names.
    """
    if cache.at is not None:
        raise PointError(
            f"This cache kept the activations at {cache.at} only; TransformerLens's tools count "
            "positions from the first: read without positions=."
        )
    table = vlm.points()
    names = [name for name in (*bridge.hook_dict, *cache) if name in table and name in cache]
    theirs = {name: cache[name] for name in names if not _is_other(name)}
    enters = next((n for n in ("hook_merged", "blocks.0.hook_resid_pre") if n in cache), None)
    theirs.pop("hook_merged", None)
    theirs.pop("hook_embed", None)  # without the pictures
    if enters is not None:
        theirs["hook_embed"] = cache[enters]
    if not theirs:
        raise PointError("The cache holds nothing that the bridge has a name for.")
    by_row = {
        name for name in theirs
        if name == "hook_embed" or table[name].axes[0] == "batch"
        or _picture_a_row(cache.layouts, table[name].space)
    }  # fmt: skip
    scales = dict(_scales(theirs, bridge))
    decoder = vlm.architecture.decoder
    return CacheOfVLM(
        theirs | scales, bridge,
        Corrections(
            n_rows=len(cache.layouts), by_row=frozenset(by_row | set(scales)),
            unknown=_unknown_parts(vlm), heads=_not_as_it_is(vlm, "attn.o.hook_out"),
            neurons=_not_as_it_is(vlm, "mlp.out.hook_out"), logit_scale=decoder.logit_scale,
            head=vlm.architecture.unknown_head,
        ),
    )  # fmt: skip


def from_cache(cache: TheirCache, vlm: HookedModel, prompt: Prompt) -> ActivationCache:
    """A cache of TransformerLens as one from here, under the names that mean the same.

    Left out are names that mean something else there (norms before their weight, scores that hold
    the pattern, as those of a tower and of Qwen3-VL do), and those of no point here.

    Args:
        cache: What a bridge of the same model has read of the prompt.
        vlm: The model.
        prompt: The prompt, with as many rows as the cache.

    Raises:
        PointError: Nothing of the cache has a point here, or its rows or positions are not the
            prompt's.
    """
    table, values, held = vlm.points(), {}, dict(cache.items())
    for there, value in held.items():
        name = _read_as(there)
        if name not in table or _is_other(there):
            continue
        pattern = held.get(there.replace("hook_attn_scores", "hook_pattern"))
        if there.endswith("hook_attn_scores") and pattern is not None and value.equal(pattern):
            continue
        point = table[name]
        value = value if cache.has_batch_dim else value[None]
        if point.axes[0] == "image" and value.dim() < len(point.axes):
            if point.name == "vision.hook_embed":  # there without positions
                continue
            value = value[None]
        values.setdefault(point.name, value)
    if not values:
        raise PointError("Nothing that this cache holds is a point of the model.")
    wanted = (len(prompt.layouts), len(prompt.layouts[0]))
    for name, value in values.items():
        if table[name].axes[:2] == ("batch", "pos") and value.shape[:2] != wanted:
            raise PointError(
                f"{name} in the cache has {value.shape[0]} rows of {value.shape[1]} positions and "
                f"the prompt {wanted[0]} of {wanted[1]}: give the prompt that the bridge ran."
            )
    return ActivationCache(
        values, table, prompt.layouts, source=vlm.facts_later(), owner=vlm.parts_later()
    )


def _unwrapped(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a wrapped model under their own names."""
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        parts = [part for part in name.split(".") if part != _WRAPPED]
        weights.setdefault(".".join(parts), value)
    return weights


def _load(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Copies weights into a model that has the same ones.

    Raises:
        ModelError: Some are missing or have another shape.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in weights]
    other = [n for n in own if n in weights and own[n].shape != weights[n].shape]
    if missing or other:
        raise ModelError(
            "The bridge's weights are not those of its model's class: "
            f"{len(missing)} missing, {len(other)} of another shape ({(missing + other)[0]}, ...)."
        )
    model.load_state_dict({name: weights[name] for name in own})


@torch.no_grad()
def _check_logits(model: PreTrainedModel, bridge: TransformerBridge, who: str) -> None:
    """Compares both on a few tokens.

    Raises:
        ModelError: They differ.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    device = next(model.parameters()).device
    tokens = torch.arange(11, 19, device=device)[None] % vocabulary
    ours = model(input_ids=tokens).logits.double()
    theirs = bridge(tokens)
    theirs = getattr(theirs, "logits", theirs).double()
    off = float((ours - theirs).abs().max() / ours.std().clamp(min=1e-9))
    if not off < _CLOSE.get(next(model.parameters()).dtype, _CLOSE_IN_HALF):
        raise ModelError(
            f"{who} computes other logits (off by {off:.2g} of their spread), so that nothing read "
            "on one would hold for the other."
        )


def _read_as(name: str) -> str:
    """The point that a name of the bridge holds; a write to a norm's input is another thing."""
    for norm, stream in _NORMS.items():
        if name.endswith(f".{norm}.hook_in"):
            return f"{name.removesuffix(f'{norm}.hook_in')}{stream}"
    return name


def _is_other(name: str) -> bool:
    """Whether a name means another thing there than here."""
    tower = name.startswith("vision")
    # norms there before their weight; a tower's scores hold its pattern there
    return name.endswith(".hook_normalized") or (tower and name.endswith(".hook_attn_scores"))


def _scales(
    values: Mapping[str, Tensor], bridge: TransformerBridge
) -> Iterator[tuple[str, Tensor]]:
    """What each norm of the language model divides by, as the bridge's norms compute it."""
    n_layers = bridge.cfg.n_layers
    norms = {f"blocks.{n_layers - 1}.hook_resid_post": ("ln_final", bridge)}
    for layer, block in enumerate(bridge.blocks):
        for norm, stream in _NORMS.items():
            norms[f"blocks.{layer}.{stream}"] = (norm, block)
    for name, (attribute, parent) in norms.items():
        norm = getattr(parent, attribute, None)
        if name not in values or not hasattr(norm, "hook_scale"):
            continue
        kept: list[Tensor] = []
        handle = norm.hook_scale.register_forward_hook(
            lambda module, args, out, kept=kept: kept.append(out.detach())
        )
        with torch.no_grad():
            norm(values[name])
        handle.remove()
        at = name.rsplit(".", 1)[0] + "." if parent is not bridge else ""
        yield f"{at}{attribute}.hook_scale", kept[0]


def _unknown_parts(vlm: HookedModel) -> str:
    """What a model adds to the stream beside attention and MLP of its blocks, in words."""
    if vlm.family.adds_between_blocks:
        return "what the model adds to the stream between its blocks (DeepStack)"
    if any("cross" in name for name in vlm.points()):
        return "its cross-attention"
    return ""


def _picture_a_row(layouts: Sequence[Layout], space: str) -> bool:
    """Whether each prompt's pictures are the row of its number in tower or projector."""
    return all(
        [row for image in layout.image for row, _ in image.space(space).sequences] == [number]
        for number, layout in enumerate(layouts)
    )


def _not_as_it_is(vlm: HookedModel, name: str) -> str:
    """Why what heads or neurons write is not what the stream receives; empty where it is."""
    table = vlm.points()
    for layer in range(vlm.cfg.n_layers):
        if f"blocks.{layer}.{name}" not in table:
            return f"in block {layer} a norm, a gate or a scale stands between them and the stream"
    return ""


def _architectures() -> tuple[str, ...]:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return tuple(SUPPORTED_ARCHITECTURES)


__all__ = ["CacheOfVLM", "from_cache", "model_of", "to_bridge", "to_cache"]
