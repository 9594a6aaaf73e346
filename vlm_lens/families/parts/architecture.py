"""Where a loaded model's parts are, and the one way in which families put that together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vlm_lens.errors import ModelError
from vlm_lens.families.parts.decoders import Decoder, text_point
from vlm_lens.families.parts.found_encoder import Encoder
from vlm_lens.families.parts.position_table import table_of_positions
from vlm_lens.points.config import HookedConfig, VisionConfig
from vlm_lens.points.placement import called
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite, Site, submodule
from vlm_lens.points.table import PointTable

_MERGED = "The language model's input: embeddings with picture features in their places"


@dataclass(frozen=True)
class Architecture:
    """Where a model's parts are.

    Attributes:
        cfg: Its sizes.
        points: Its points.
        decoder: Its text model.
        unembed: Path of the layer that gives logits.
        image_token_id: The token that stands for a patch of a picture, if any.
        unknown_head: Why logits cannot be computed from the final norm's output, where so.
        n_positions: How many positions the text model has a table for; `None` where it has none.
        encoder: Its encoder, where it has one beside its decoder.
    """

    cfg: HookedConfig
    points: PointTable
    decoder: Decoder
    unembed: str
    image_token_id: int | None = None
    unknown_head: str = ""
    n_positions: int | None = None
    encoder: Encoder | None = None

    @property
    def ids(self) -> str:
        """The name of the tensor whose positions the language model counts."""
        return "decoder_input_ids" if self.encoder else "input_ids"

    def final_norm(self, model: torch.nn.Module) -> torch.nn.Module:
        """The norm between the last block and the output layer; nothing where there is none."""
        norm = self.decoder.norm
        return submodule(model, norm) if norm else torch.nn.Identity()

    def logits(self, model: torch.nn.Module, x: Tensor) -> Tensor:
        """What the model's output layer makes of `x`, scaled and capped as the model does.

        Raises:
            ModelError: The model does something else to it, which is not known.
        """
        if self.unknown_head:
            raise ModelError(
                f"{self.cfg.model_name}: {self.unknown_head}, so no logits can be computed from "
                "its residual stream. Describe it in a family of its own, or read them in runs."
            )
        logits = called(submodule(model, self.unembed), x)
        if self.decoder.logit_scale != 1.0:
            logits = logits * self.decoder.logit_scale
        cap = self.decoder.logit_softcap
        logits = logits if cap is None else torch.tanh(logits / cap) * cap
        if not self.decoder.barred:
            return logits
        barred = torch.tensor(self.decoder.barred, device=logits.device)
        return logits.index_fill(-1, barred, torch.finfo(logits.dtype).min)


def embeddings_of(path: str) -> InputSite:
    """What a text model at `path` is given in place of tokens."""
    return InputSite(path, keyword="inputs_embeds", index=4)


def assemble(
    model: torch.nn.Module,
    family: str,
    decoder: Decoder,
    merged: Site,
    *,
    merged_doc: str = _MERGED,
    before: Sequence[Point] = (),
    vision: VisionConfig | None = None,
    missing: Mapping[str, str] | None = None,
    unembed: str = "lm_head",
    image_token_id: int | None = None,
) -> Architecture:
    """The architecture around a text model.

    Args:
        model: The model.
        family: The family's name.
        decoder: The text model; its blocks, embedding, final norm and logits become points.
        merged: Where the text model's input is, `hook_merged`.
        merged_doc: What that input is.
        before: The points of tower and projector, in the order in which they are computed.
        vision: The tower's sizes, if there is one.
        missing: What the model lacks beside what its text blocks lack: glob -> reason. With
            `hook_embed` among them the embedding is no point.
        unembed: Path of the layer that gives logits.
        image_token_id: The token that stands for a patch of a picture, if any.
    """
    config: Any = model.config
    size, d_vocab = decoder.stack.size, config.get_text_config(decoder=True).vocab_size
    missing = {**(missing or {}), **decoder.missing()}
    points = [
        *([] if "hook_embed" in missing else [decoder.embedding_point()]),
        *before,
        text_point("hook_merged", size.d_model, merged_doc, merged),
        *decoder.stack.points(),
        *decoder.closing_points(d_vocab),
    ]
    cfg = HookedConfig(
        model_name=config.name_or_path or type(model).__name__,
        family=family,
        d_vocab=d_vocab,
        vision=vision,
        **asdict(size),
    )
    return Architecture(
        cfg, PointTable(points, missing), decoder, unembed, image_token_id,
        n_positions=table_of_positions(model, decoder.embed, decoder.stack.path),
    )  # fmt: skip
