"""BLIP-2: a ViT, a Q-Former whose queries read it, an OPT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from vlm_lens.errors import ModelError, PromptError
from vlm_lens.families.parts.architecture import Architecture
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.picture import Picture, one_frame
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.stack import BlockParts, Stack, stack_size
from vlm_lens.families.parts.towers import image_point
from vlm_lens.layout.pictures import ImageLayout, ImageSpace
from vlm_lens.points.point import Point
from vlm_lens.points.sites import AttentionSite, HeadView, InputSite, OutputSite
from vlm_lens.points.table import PointTable

_LANGUAGE_MODEL = "language_model"
_QFORMER = BlockParts(
    ln1="attention.output.LayerNorm", attn="attention.attention", q="query", k="key", v="value",
    o="", ln2=None, mlp="intermediate_query", mlp_pre="dense", mlp_post="",
    attn_out="attention.output.dense", mlp_out="output_query.dense",
)  # fmt: skip
_POST_NORM = "a Q-Former normalises each sum, not what its parts read."
_NO_GRID = (
    "Every query of the Q-Former reads all patches of a picture; "
    "vlm_lens.reading.resampled tells how much it reads of each"
)


class Blip2Family(ProjectedFamily):
    """`Blip2ForConditionalGeneration` with a decoder-only language model.

    As trained, a picture comes before everything else, the beginning-of-text token included: so
    `<image>` at the beginning of a text is placed there. Elsewhere it stays where it is written.
    """

    name = "blip-2"
    model_types = ("blip-2",)
    tower_path = "vision_model"
    projector_path = "qformer"
    text_path = f"{_LANGUAGE_MODEL}.model"
    projector_input = "encoder_hidden_states"
    reads_normed = True
    merges = True
    adds_positions = True
    not_continued = "its forward takes a picture at every step, so no cache can be continued"

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts of a BLIP-2; the Q-Former's blocks are `projector.blocks.*`.

        Raises:
            ModelError: The language model is an encoder and a decoder, or the checkpoint is older
                than image tokens.
        """
        config = model.config
        if not config.use_decoder_only_language_model:
            raise ModelError(
                f"This BLIP-2 has the encoder-decoder {config.text_config.model_type!r}, whose "
                "pictures stand in an encoder of its own; only BLIP-2 with a decoder such as OPT "
                "is described, Salesforce/blip2-opt-2.7b for one."
            )
        if config.image_token_id is None:
            raise ModelError(
                "This checkpoint names no image token (config.image_token_index is None), so its "
                "pictures cannot be placed in the text: load a newer revision of it."
            )
        arch = super().architecture(model)
        # The language model adds positions itself, and generates without the model around it.
        first = InputSite(f"{arch.decoder.stack.path}.0")
        doc = "The first block's input: embeddings with picture features in their places, and "
        changes = {
            "hook_merged": {"site": first, "doc": doc + "positions"},
            "hook_logits": {"site": OutputSite(_LANGUAGE_MODEL, path=("logits",))},
        }
        points = [replace(p, **changes.get(name, {})) for name, p in arch.points.items()]
        missing = {**arch.points.missing, **self._blocks(config).missing()}
        table = PointTable(points, missing)
        return replace(arch, points=table, unembed=f"{_LANGUAGE_MODEL}.lm_head")

    def projector_points(self, config: Any, d_in: int) -> list[Point]:
        """The Q-Former's blocks too, and its cross-attention to the tower."""
        entering, leaving = super().projector_points(config, d_in)
        leaving = replace(leaving, site=OutputSite("language_projection"))
        blocks = self._blocks(config)
        every = config.qformer_config.cross_attention_frequency
        points = []
        for point in blocks.points():
            points.append(point)
            if point.name.endswith("hook_attn_out") and point.layer % every == 0:
                points += _cross_points(blocks, point.layer)
        return [entering, *points, leaving]

    def _blocks(self, config: Any) -> Stack:
        size = stack_size(config.qformer_config)
        by_head = HeadView(size.n_heads, size.d_head)
        return Stack(
            f"{self.projector_path}.encoder.layer", _QFORMER, size, "projector.", "projector",
            sites={
                "attn.hook_z": lambda block: InputSite(
                    f"{block}.attention.output.dense", keyword="input", view=by_head),
                "mlp.hook_post": lambda block: InputSite(
                    f"{block}.output_query.dense", keyword="input"),
            },
            lacks=dict.fromkeys(
                ("ln1.hook_normalized", "ln2.hook_normalized", "hook_resid_mid"), _POST_NORM
            ),
        )  # fmt: skip

    def placeholder(self, processor: Any) -> str:
        """The processor's image token, which may be an `AddedToken`."""
        return str(getattr(processor.image_token, "content", processor.image_token))

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Tokens and pixels; the processor itself puts one picture before every text.

        Raises:
            PromptError: The processor does not know how many tokens a picture takes.
        """
        n_tokens, tokenizer = processor.num_query_tokens, processor.tokenizer
        if n_tokens is None:
            raise PromptError(
                "This processor does not know how many tokens a picture takes: set "
                "vlm.processor.num_query_tokens = vlm.hf_model.config.num_query_tokens."
            )
        mark = self.placeholder(processor)
        special = options.get("add_special_tokens", True)
        rows = []
        for text in texts:
            rest = text
            while rest.startswith(mark):
                rest = rest.removeprefix(mark)
            before = (len(text) - len(rest)) // len(mark) * n_tokens
            ids = tokenizer(rest.replace(mark, mark * n_tokens), add_special_tokens=special)
            rows.append([tokenizer.convert_tokens_to_ids(mark)] * before + ids["input_ids"])
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        pad = tokenizer.pad_token_id or 0
        return {
            "input_ids": torch.tensor(
                [[pad] * n + r for n, r in zip(padding, rows, strict=True)]
            ),
            "attention_mask": torch.tensor([[0] * n + [1] * (longest - n) for n in padding]),
            **processor.image_processor([p for r in pictures for p in r], return_tensors="pt"),
        }  # fmt: skip

    def image_layouts(self, batch: PictureBatch) -> list[list[ImageLayout]]:
        """Patches have places in the tower; queries have none.

        Raises:
            PromptError: No picture at all: the model cannot run without one.
        """
        layouts = super().image_layouts(batch)
        if not self.count_images(batch.inputs):
            raise PromptError(
                "BLIP-2 runs on nothing without a picture: write <image> in one of the texts. For "
                "text alone take its language model, HookedVLM(vlm.hf_model.language_model, "
                "vlm.tokenizer)."
            )
        return layouts

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Every picture is one frame and as many tokens as there are queries."""
        (width, height), patch = batch.frame, batch.vision.patch_size
        n_tokens, pictures = batch.config.num_query_tokens, []
        for number in range(self.count_images(batch.inputs)):
            pixels = batch.pixels(number, batch.frame)
            frame = one_frame(number, height // patch, width // patch, pixels, n_class_tokens=1)
            queries = ImageSpace((), ((number, tuple(range(n_tokens))),), _NO_GRID)
            pictures.append(Picture(n_tokens, (), frame.vision, queries, _NO_GRID))
        return pictures


def _cross_points(stack: Stack, layer: int) -> Iterator[Point]:
    """The points of a block's attention to the tower: its keys are patches."""
    block, size = f"{stack.path}.{layer}.crossattention", stack.size
    attention, out = f"{block}.attention", f"{block}.output.dense"
    by_head = HeadView(size.n_heads, size.d_head)
    heads = ("image", "pos", "head", "d_head"), (None, None, size.n_heads, size.d_head)
    square = ("image", "head", "query", "key"), (None, size.n_heads, None, None)

    def point(name: str, shape: tuple, doc: str, site: Any, space: str = "projector") -> Point:
        return Point(f"projector.blocks.{layer}.cross_attn.{name}", *shape, doc, site, space)

    yield point(
        "hook_q",
        heads,
        "Queries of the Q-Former's queries",
        OutputSite(f"{attention}.query", view=by_head),
    )
    yield point(
        "hook_k",
        heads,
        "Keys of the tower's positions",
        OutputSite(f"{attention}.key", view=by_head),
        "vision",
    )
    yield point(
        "hook_v",
        heads,
        "Values of the tower's positions",
        OutputSite(f"{attention}.value", view=by_head),
        "vision",
    )
    yield point(
        "hook_attn_scores",
        square,
        "Scores of the tower's positions, before softmax",
        AttentionSite(attention, "scores"),
    )
    yield point(
        "hook_pattern",
        square,
        "Each query's weights over the tower's positions",
        AttentionSite(attention, "pattern"),
    )
    yield point(
        "hook_z", heads, "Each head's mixed values", InputSite(out, keyword="input", view=by_head)
    )
    yield image_point(
        f"projector.blocks.{layer}.hook_cross_attn_out", size.d_model,
        "What attention to the tower adds, before the norm", OutputSite(out),
        space="projector", axis="d_model",
    )  # fmt: skip
