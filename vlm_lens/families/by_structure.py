"""A model of no registered family: what transformers' own classes name, and what a run shows.

The text model is found and proved in one tiny forward (`parts/found.py`); tower and projector are
taken where exactly one module can be it. What is not certain is declared missing, with what was
found; `vlm_lens.testing.conformance` says whether all that is there holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_lens.errors import PromptError
from vlm_lens.families.decoder import NO_VISION
from vlm_lens.families.parts.architecture import Architecture, assemble
from vlm_lens.families.parts.batch import PictureBatch
from vlm_lens.families.parts.family import Family
from vlm_lens.families.parts.found import HELP, FoundDecoder, found_decoder
from vlm_lens.families.parts.found_encoder import Encoder
from vlm_lens.families.parts.found_geometry import Painted, painted, placed
from vlm_lens.families.parts.found_tower import FoundTower, Held, found_tower
from vlm_lens.families.parts.named_tower import NO_OUT, named_tower, untold
from vlm_lens.families.parts.other_encoders import other_encoders
from vlm_lens.families.parts.picture import Picture, runs_of
from vlm_lens.families.parts.picture_lengths import lengths_of_features, rows_are_pictures
from vlm_lens.families.parts.towers import Tower
from vlm_lens.layout.pictures import ImageLayout, ImageSpace
from vlm_lens.points.config import VisionConfig
from vlm_lens.points.point import Point
from vlm_lens.points.sites import InputSite
from vlm_lens.tokens import IMAGE, tokenizer_of

_WHY = "the geometry of this model's pictures is not described"
_PIXELS = ("pixel_values", "flattened_patches")
_READ_BY_ENCODER = (
    "Pictures have no positions in this text: its encoder reads them, and cross-attention reads it"
)
_STAGES = "the stages before its last have maps of other sizes; vision.blocks.* are the last one's."
_DEEPSTACK = "picture features are added between blocks too, at image positions (DeepStack)"


class StructureFamily(Family):
    """One model type, described by what its modules are and do.

    Args:
        config: The model's config.
    """

    model_types = ()
    not_separable = "the model is not of a registered family"

    def __init__(self, config: Any):
        self.name = f"{config.model_type}, by structure"
        self.takes_images = _vision_config(config) is not None
        self._tower: FoundTower | None = None
        self._encoder: Encoder | None = None
        self._painted: dict[Any, Painted | None] = {}

    def architecture(self, model: torch.nn.Module) -> Architecture:
        """The parts that can be told for certain.

        Raises:
            ModelError: A text model that cannot be told for certain.
        """
        found = found_decoder(model)
        self.residual_breaks = found.residual_breaks
        self.adds_positions = found.adds_positions
        stack, encoder = found.decoder.stack, found.encoder
        before: list[Point] = []
        missing, vision = dict(NO_VISION), None
        self._encoder = encoder
        if encoder is not None and encoder.space == "vision":
            missing = {
                "projector.*": "its decoder reads what the encoder gives, by cross-attention."
            }
        elif self.takes_images:
            before, missing, vision = self._pictured(model, found)
        if before:
            missing |= other_encoders(model, stack.path, before)
        if encoder is not None:
            self.not_replayable = "its decoder reads what its encoder gives, by cross-attention"
            before, missing = [*before, *encoder.points()], missing | encoder.missing()
        elif not found.decoder.norm:
            self.not_replayable = "its output layer reads the stream with no norm between"
        if found.embed_unseen:
            missing["hook_embed"] = found.embed_unseen
        self.adds_between_blocks = self.takes_images or bool(found.residual_breaks)
        first = f"{stack.path}.0"
        site = found.decoder.first_input
        arch = assemble(
            model, self.name, found.decoder, site or InputSite(first), before=before,
            merged_doc="What the first block reads", vision=vision, missing=missing,
            unembed=found.unembed, image_token_id=_image_token(model.config),
        )  # fmt: skip
        return replace(arch, unknown_head=found.unknown_head, encoder=encoder)

    def _pictured(
        self, model: torch.nn.Module, text: FoundDecoder
    ) -> tuple[list[Point], dict[str, str], VisionConfig | None]:
        """The points of tower and projector, what is missing of them, and the tower's sizes."""
        config, blocks, d_model = (
            _vision_config(model.config), text.decoder.stack.path, text.decoder.d_word,
        )  # fmt: skip
        found = found_tower(model, config, blocks)
        if found is None and (named := named_tower(model, blocks, d_model)) is not None:
            return named
        self._tower = found = found or found_tower(model, config, blocks, bare=True)
        if found is None:
            return [], dict.fromkeys(("vision.*", "projector.*"), untold(model)), None
        points: list[Point] = []
        missing: dict[str, str] = {}
        vision = None
        if found.embeds:
            missing["hook_embed"] = "pictures pass through the token embedding too."
        if found.deepstack:
            self.residual_breaks = self.residual_breaks or _DEEPSTACK
        self.tower_breaks = found.breaks
        if found.stack is None:
            missing["vision.*"] = "no list of blocks of the tower passes a stream on."
        else:
            first = "What the first block reads"
            if found.mapped:
                first = "What the first block of its last stage reads, a map cell by cell"
                missing["vision.stages.*"] = _STAGES
            tower = Tower("", None, found.n_class, found.stack.size, embed="", embed_doc=first)
            points += tower.points("", found.stack)
            missing |= found.stack.missing() | {"vision.hook_out": NO_OUT}
            vision = tower.config(config, found.reads)
        if found.projector is None:
            missing["projector.*"] = "no one module gives what stands in the text, once a run."
        elif found.projector[0] in text.called:
            missing["projector.*"] = f"{found.projector[0]}, which gives it, embeds words too."
        else:
            points += found.projector_points(d_model)
            if not any(p.name == "projector.hook_in" for p in points):
                missing["projector.hook_in"] = (
                    "its positions are neither the tower's nor those of the projector's output."
                )
        return points, missing, vision

    def placeholder(self, processor: Any) -> str:
        """Its processor's own mark; where its encoder reads pictures alone, there is none."""
        if self._pictures_alone:
            return IMAGE
        if self.takes_images and not hasattr(processor, "image_token"):
            raise PromptError(
                f"{type(processor).__name__} names no token that stands for a picture: give the "
                "tensors that it makes, vlm.run(dict(processor(...)))."
            )
        return super().placeholder(processor)

    @property
    def _pictures_alone(self) -> bool:
        return self._encoder is not None and self._encoder.space == "vision"

    def process(
        self, processor: Any, texts: list[str], pictures: list[list[Image.Image]], **options: Any
    ) -> Mapping[str, Any]:
        """Pictures of several texts are given in the form that the processor takes.

        Where an encoder reads pictures alone, what follows the mark begins the answer.

        A processor that draws a question into the picture (Pix2Struct's for questions) is given it.

        Raises:
            PromptError: A text that does not begin with its one picture.
        """
        if not self._pictures_alone:
            try:
                return super().process(processor, texts, pictures, **options)
            except ValueError:
                if len(texts) < 2 or not any(pictures):
                    raise
            # it counts them text by text: Gemma 3's, for one
            return processor(text=texts, images=pictures, **options)
        for text in texts:
            if not text.startswith(IMAGE) or text.count(IMAGE) != 1:
                raise PromptError(
                    f"{self.name} reads one picture, and no text beside it: write '<image>' once, "
                    f"at the beginning, and after it how the answer begins, not {text!r:.80}."
                )
        rest = [text.removeprefix(IMAGE) for text in texts]
        images, kind = [p for row in pictures for p in row], {"return_tensors": "pt"}
        if getattr(getattr(processor, "image_processor", None), "is_vqa", False):
            return processor(images=images, text=rest, **kind)
        found = dict(processor(images=images, **kind))
        if any(rest) and self._encoder is not None and self._encoder.start is not None:
            rows = [tokenizer_of(processor)(t, add_special_tokens=False)["input_ids"] for t in rest]
            if len({*map(len, rows)}) != 1:
                raise PromptError("Beginnings of answers differ in length: run them one by one.")
            start = self._encoder.start
            found["decoder_input_ids"] = torch.tensor([[start, *row] for row in rows])
        return found

    def image_layouts(self, batch: PictureBatch) -> list[list[ImageLayout]]:
        """Where the pictures stand, for each row of a batch; in no text, for an encoder of them."""
        encoder = self._encoder
        if encoder is None or not self._pictures_alone:
            return super().image_layouts(batch)
        nowhere = ImageSpace(why_no_grid=_READ_BY_ENCODER)
        return [
            [ImageLayout(0, nowhere, _whole_row(row, encoder, batch))]
            if self.count_images(batch.inputs) else []
            for row in range(len(batch.inputs[batch.arch.ids]))
        ]  # fmt: skip

    def count_images(self, inputs: Mapping[str, Tensor]) -> int:
        """How many pictures the tensors name, or how many rows of pixels they hold."""
        pixels = [inputs[n] for n in _PIXELS if inputs.get(n) is not None]
        if not self.takes_images or not pixels:
            return 0
        for name in ("image_grid_thw", "image_grid_hw", "target_sizes", "spatial_shapes"):
            if inputs.get(name) is not None:
                return len(inputs[name])
        return len(pixels[0])

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """Each picture's image tokens, and its patches where painting shows where they stand.

        Raises:
            PromptError: It cannot be told which image tokens belong to which picture.
        """
        patches = _patches(batch.inputs)
        counts = _tokens_by_picture(batch, self.count_images(batch.inputs), patches)
        if self._tower is not None:
            held = (self._tower.tower_held, self._tower.leaving)
            spaces = [_spaces(batch, h, counts, patches) for h in held]
        else:
            spaces = [_by_rows(batch, counts, tower=t) for t in (True, False)]
        pictures = [
            Picture(n, (), vision, projector, _WHY)
            for n, vision, projector in zip(counts, *spaces, strict=True)
        ]
        pixels = batch.inputs.get("pixel_values")
        size = None if pixels is None else pixels.shape[1:]
        if size not in self._painted:
            alone = patches is None and pixels is not None and len(pixels) == len(pictures)
            self._painted[size] = painted(batch) if alone else None
        return placed(batch, pictures, self._painted[size])


def _vision_config(config: Any) -> Any:
    for name in ("vision_config", "vq_config"):
        if (found := getattr(config, name, None)) is not None:
            return found
    encoder = getattr(config, "encoder", None)  # of an encoder-decoder made of two configs
    if hasattr(encoder, "image_size"):
        return encoder
    return None if encoder is None else _vision_config(encoder)


def _whole_row(row: int, encoder: Encoder, batch: PictureBatch) -> ImageSpace:
    """All of one row of an encoder that reads a picture a row; no padding of its patches."""
    places: list[int] = list(range(encoder.length))
    patches = batch.inputs.get("flattened_patches")
    if patches is not None:
        mask = batch.inputs.get("attention_mask")
        there = torch.ones(patches.shape[:2]) if mask is None else mask
        places = there[row].nonzero().flatten().tolist()
    return ImageSpace((), ((row, tuple(places)),) if places else (), _WHY)


def _patches(inputs: Mapping[str, Tensor]) -> list[int] | None:
    """Patches of each picture, where the tensors say so."""
    for name in ("image_grid_thw", "image_grid_hw", "target_sizes", "spatial_shapes"):
        if inputs.get(name) is not None:
            return inputs[name].prod(-1).tolist()
    return None


def _spaces(
    batch: PictureBatch, held: Held | None, counts: list[int], patches: list[int] | None
) -> list[ImageSpace]:
    """Where pictures stand in a tensor of tower or projector; nowhere where it cannot be told."""
    nowhere = [ImageSpace((), (), _WHY) for _ in counts]
    if held is None:
        return nowhere
    lengths = [held.length(None if patches is None else patches[i]) for i in range(len(counts))]
    pixels = batch.inputs.get("pixel_values")
    if patches is None and held.area and pixels is not None and pixels.dim() >= 4:
        lengths = [held.of_frame(pixels.shape[-2:].numel())] * len(counts)
    if None in lengths:
        return nowhere
    if not held.rows:
        ends = list(accumulate(lengths))
        runs = [tuple(range(end - n, end)) for end, n in zip(ends, lengths, strict=True)]
        return [ImageSpace((), ((0, run),), _WHY) for run in runs]
    frames = _frames(batch, held, counts, patches)
    ends = list(accumulate(frames))
    return [
        ImageSpace((), tuple((row, tuple(range(length))) for row in range(end - n, end)), _WHY)
        for end, n, length in zip(ends, frames, lengths, strict=True)
    ]


def _frames(
    batch: PictureBatch, held: Held, counts: list[int], patches: list[int] | None
) -> list[int]:
    """Rows of the tower for each picture: as many as one has, or by its share of image tokens."""
    pixels = next(batch.inputs[n] for n in _PIXELS if batch.inputs.get(n) is not None)
    n_frames = pixels.shape[:2].numel() if pixels.dim() == 5 else len(pixels)
    if patches is not None or n_frames == len(counts):
        return [held.rows] * len(counts)
    shares = [n * n_frames // max(sum(counts), 1) for n in counts]
    return [held.rows * n for n in shares] if sum(shares) == n_frames else [0] * len(counts)


def _by_rows(batch: PictureBatch, counts: list[int], *, tower: bool) -> list[ImageSpace]:
    """Each picture in one row of the tower's or the projector's tensors, where so many are rows."""
    pixels, nowhere = batch.inputs.get("pixel_values"), ImageSpace((), (), _WHY)
    if pixels is None or len(pixels) != len(counts):
        return [nowhere] * len(counts)
    if not tower:
        return [ImageSpace((), ((i, tuple(range(n))),), _WHY) for i, n in enumerate(counts)]
    vision = batch.arch.cfg.vision
    if pixels.dim() != 4 or vision is None or not vision.patch_size:
        return [nowhere] * len(counts)
    (width, height), patch = batch.frame, vision.patch_size
    n = vision.n_class_tokens + (height // patch) * (width // patch)
    return [ImageSpace((), ((i, tuple(range(n))),), _WHY) for i in range(len(counts))]


def _tokens_by_picture(batch: PictureBatch, n_rows: int, patches: list[int] | None) -> list[int]:
    """How many image tokens each picture has.

    A picture's share is that of its patches, where these are known, or what the model's own
    features say. Else it is a run of image tokens, or several where marks stand within it; pictures
    that follow each other without a mark are told apart where all take the same number.
    """
    runs = [len(run) for places in batch.places for run in runs_of(places)]
    sizes = batch.inputs.get("image_sizes") if batch.sizes is None else batch.sizes
    total, n = sum(runs), None if sizes is None else len(sizes)
    if patches is not None and total:
        shares = [total * p // sum(patches) for p in patches]
        if sum(shares) == total:
            return shares
    if n == len(runs) or not runs:
        return runs
    if n != 1 and n_rows > 1:
        told = lengths_of_features(batch.model, batch.inputs) or []
        if sum(told) == total and len(told) == (n or len(told)):
            return told
    if n is None and n_rows > len(runs) and rows_are_pictures(batch.image_processor):
        n = n_rows
    n = n or len(runs)
    if n == len(runs):
        return runs
    if n_rows == n and total % n == 0:
        return [total // n] * n
    if len(runs) % n == 0 and batch.sizes is not None and len({*batch.sizes}) == 1:
        each = len(runs) // n
        return [sum(runs[i * each : (i + 1) * each]) for i in range(n)]
    raise PromptError(
        f"{total} image tokens in {len(runs)} runs cannot be shared out to {n} pictures without "
        f"knowing this model. {HELP}"
    )


def _image_token(config: Any) -> int | None:
    for name in ("image_token_id", "image_token_index"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return None
