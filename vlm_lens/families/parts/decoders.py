"""Text models: decoder-only language models, alone or inside a vision-language model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.stack import BlockParts, SiteMaker, Stack, stack_size
from vlm_lens.points.config import StackConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import (
    ColumnsView,
    FlatView,
    FusedHeadView,
    InputSite,
    MidSite,
    OutputSite,
    Site,
)


@dataclass(frozen=True)
class DecoderNames:
    """Where a text model keeps its parts, relative to the text model itself.

    Attributes:
        parts: The names within a block.
        layers: The list of blocks.
        embed: The token embedding.
        norm: The final norm.
        sites: Points that are elsewhere; see `Stack.sites`. Made from the sizes.
        lacks: Points that it does not have; see `Stack.lacks`.
    """

    parts: BlockParts
    layers: str = "layers"
    embed: str = "embed_tokens"
    norm: str = "norm"
    sites: Callable[[StackConfig], Mapping[str, SiteMaker]] = field(default=lambda size: {})
    lacks: Mapping[str, str] = field(default_factory=dict)


_LLAMA = BlockParts(
    ln1="input_layernorm", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="o_proj",
    ln2="post_attention_layernorm", mlp="mlp", mlp_pre="gate_proj", mlp_linear="up_proj",
    mlp_post="down_proj",
)  # fmt: skip

# A norm before and a norm after attention and MLP: the stream receives the second norm's output.
_SANDWICH = replace(
    _LLAMA, ln2="pre_feedforward_layernorm", attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
)  # fmt: skip

_GLM4V = replace(
    _LLAMA, attn_out="post_self_attn_layernorm", mlp_out="post_mlp_layernorm",
    mlp_pre=None, mlp_linear=None,
)  # fmt: skip

_PARALLEL = replace(_LLAMA, ln2=None)

# What a block of an unknown text model may look like; see `by_structure`.
BLOCK_FORMS = (_LLAMA, _SANDWICH, _PARALLEL)

_PERSIMMON = BlockParts(
    ln1="input_layernorm", attn="self_attn", q=None, k=None, v=None, o="dense",
    ln2="post_attention_layernorm", mlp="mlp", mlp_pre="dense_h_to_4h", mlp_post="dense_4h_to_h",
)  # fmt: skip

_OPT = BlockParts(
    ln1="self_attn_layer_norm", attn="self_attn", q="q_proj", k="k_proj", v="v_proj", o="out_proj",
    ln2="final_layer_norm", mlp="fc2", mlp_pre=None, mlp_post="",
)  # fmt: skip


def _fused_gate_sites(size: StackConfig) -> dict[str, SiteMaker]:
    """One layer makes both branches of a gated MLP, the one through the non-linearity first."""

    def branch(number: int) -> SiteMaker:
        view = ColumnsView(number * size.d_mlp, (number + 1) * size.d_mlp)
        return lambda block: OutputSite(f"{block}.mlp.gate_up_proj", view=view)

    return {"mlp.hook_pre": branch(0), "mlp.hook_pre_linear": branch(1)}


def _persimmon_sites(size: StackConfig) -> dict[str, SiteMaker]:
    def part(number: int) -> SiteMaker:
        view = FusedHeadView(size.n_heads, size.d_head, number, heads_first=True)
        return lambda block: OutputSite(f"{block}.self_attn.query_key_value", view=view)

    return {"attn.hook_q": part(0), "attn.hook_k": part(1), "attn.hook_v": part(2)}


def _opt_sites(size: StackConfig) -> dict[str, SiteMaker]:
    # OPT runs its MLP on rows and positions in one axis, and has no module around it.
    flat = FlatView()

    def mid(block: str) -> Site:
        norm = InputSite(f"{block}.final_layer_norm", keyword="input", view=flat)
        branch, whole = OutputSite(f"{block}.fc2"), OutputSite(block)
        return MidSite(norm, branch, whole)

    return {
        "hook_resid_mid": mid,
        "ln2.hook_normalized": lambda block: OutputSite(f"{block}.final_layer_norm", view=flat),
        "mlp.hook_pre": lambda block: OutputSite(f"{block}.fc1", view=flat),
        "mlp.hook_post": lambda block: InputSite(f"{block}.fc2", keyword="input", view=flat),
        "hook_mlp_out": lambda block: OutputSite(f"{block}.fc2", view=flat),
    }


# Text models by `config.model_type`.
DECODERS: dict[str, DecoderNames] = {
    **dict.fromkeys(
        ("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma"), DecoderNames(_LLAMA)
    ),
    **dict.fromkeys(("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"), DecoderNames(_LLAMA)),
    **dict.fromkeys(("gemma2", "gemma3_text"), DecoderNames(_SANDWICH)),
    **dict.fromkeys(("cohere", "cohere2"), DecoderNames(_PARALLEL)),
    "glm4v_text": DecoderNames(_GLM4V, sites=_fused_gate_sites),
    "persimmon": DecoderNames(_PERSIMMON, norm="final_layernorm", sites=_persimmon_sites),
    "opt": DecoderNames(
        _OPT,
        layers="decoder.layers",
        embed="decoder.embed_tokens",
        norm="decoder.final_layer_norm",
        sites=_opt_sites,
    ),
}


@dataclass(frozen=True)
class Decoder:
    """A text model found in a larger model.

    Attributes:
        stack: Its blocks.
        embed: Path of the token embedding.
        norm: Path of the final norm; empty where there is none.
        logit_scale: What the output layer's result is multiplied by.
        logit_softcap: `c` where logits are `c * tanh(x / c)`.
        barred: Tokens that the model never says: their logits are the lowest number.
        width: Width of embeddings, where that is not the stream's.
        d_final: Width of the final norm's output, likewise.
    """

    stack: Stack
    embed: str
    norm: str
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    barred: tuple[int, ...] = ()
    width: int | None = None
    d_final: int | None = None

    @property
    def d_word(self) -> int:
        """Width of embeddings."""
        return self.width or self.stack.size.d_model

    @property
    def first_input(self) -> Site | None:
        """What the first block reads, where that is not as blocks are usually called."""
        make = self.stack.layer_sites.get(0, {}).get("hook_resid_pre")
        return make(f"{self.stack.path}.0") if make else None

    def embedding_point(self) -> Point:
        """`hook_embed`: the token embeddings."""
        doc = "Token embeddings, before pictures are placed"
        return text_point("hook_embed", self.d_word, doc, OutputSite(self.embed))

    def closing_points(self, d_vocab: int) -> list[Point]:
        """The points after the last block: the final norm's output and the logits."""
        norm = text_point("ln_final.hook_normalized", self.d_final or self.stack.size.d_model,
                          "What the unembedding reads: the final norm's output",
                          OutputSite(self.norm))  # fmt: skip
        logits = text_point("hook_logits", d_vocab, "Logits over the vocabulary",
                            OutputSite("", path=("logits",)), axis="d_vocab")  # fmt: skip
        return [norm, logits] if self.norm else [logits]

    def missing(self) -> dict[str, str]:
        """What it lacks: glob -> reason."""
        lacks = self.stack.missing()
        if not self.norm:
            lacks["ln_final.hook_normalized"] = (
                "no norm stands between the last block and the output layer, which reads "
                "hook_resid_post of that block."
            )
        return lacks


def find_decoder(config: Any, path: str, names: DecoderNames | None = None) -> Decoder:
    """The text model whose module stands at `path`.

    Args:
        config: The text model's own config.
        path: Path from the whole model to the text model, such as `model.language_model`.
        names: Where it keeps its parts, for a type that is not in `DECODERS`.

    Raises:
        ModelError: A text model of a type that is not known, or a variant that is not described.
    """
    names = names or DECODERS.get(config.model_type)
    if names is None:
        raise ModelError(
            f"The text model is of type {config.model_type!r}; known are "
            f"{', '.join(sorted(DECODERS))}. Describe it in families/parts/decoders.py."
        )
    if config.model_type == "opt" and not config.do_layer_norm_before:
        raise ModelError(
            "This OPT normalises after attention and MLP (as opt-350m does); its residual stream "
            "is another thing at every point, and it is not described."
        )
    size = stack_size(config)
    stack = Stack(
        f"{path}.{names.layers}", names.parts, size, sites=names.sites(size), lacks=names.lacks
    )
    return Decoder(
        stack,
        f"{path}.{names.embed}",
        f"{path}.{names.norm}",
        float(getattr(config, "logit_scale", None) or 1.0),
        getattr(config, "final_logit_softcapping", None),
    )


def text_point(name: str, width: int, doc: str, site: Site, axis: str = "d_model") -> Point:
    """A point of the language model outside its blocks, `[batch, pos, width]`."""
    return Point(name, ("batch", "pos", axis), (None, None, width), doc, site)
