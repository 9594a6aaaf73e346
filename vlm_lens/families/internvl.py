"""InternVL: tiles and a thumbnail, a pixel shuffle, a Qwen2 or Llama."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

from vlm_lens.errors import PromptError
from vlm_lens.families.parts.batch import GivenVideo, PictureBatch
from vlm_lens.families.parts.picture import Picture, place_pictures, runs_of
from vlm_lens.families.parts.pixels import Size, size_entry
from vlm_lens.families.parts.projected import ProjectedFamily
from vlm_lens.families.parts.shuffled_tiles import Frame, tiled_pictures
from vlm_lens.layout.pictures import FrameLayout, ImageLayout, VideoLayout
from vlm_lens.points.point import Point


class InternVLFamily(ProjectedFamily):
    """`InternVLForConditionalGeneration`; it reads the frames of a video as pictures."""

    name = "internvl"
    model_types = ("internvl",)

    def features_path(self, config: Any) -> tuple[str | int, ...]:
        """The last hidden state is normed, others are not."""
        layer = config.vision_feature_layer
        return ("last_hidden_state",) if layer == -1 else ("hidden_states", layer)

    def projector_points(self, config: Any, d_in: int) -> list[Point]:
        """The projector reads blocks of patches, already put together."""
        return super().projector_points(config, d_in * _merge(config) ** 2)

    def image_layouts(self, batch: PictureBatch) -> list[list[ImageLayout]]:
        """Where the pictures stand; frames of a video are the video's."""
        if not batch.videos:
            return super().image_layouts(batch)
        self._check_videos_alone(batch)
        return [[] for _ in batch.ids]

    def video_layouts(self, batch: PictureBatch) -> list[list[VideoLayout]]:
        """Where videos stand: a frame is a run of image tokens, a row in tower and projector.

        Raises:
            PromptError: Pictures beside videos, or videos of which it is not known how many frames
                they have.
        """
        if not batch.videos:
            return [[] for _ in batch.ids]
        self._check_videos_alone(batch)
        # what a frame is as a picture, in reading order
        sizes = [video.size for video in batch.videos for _ in range(video.n_frames or 0)]
        alone = replace(batch, videos=(), sizes=None if None in sizes else sizes)
        frames = place_pictures(batch, self.pictures(alone))
        queue, rows = iter(batch.videos), []
        for images in frames:
            row: list[VideoLayout] = []
            while images:
                given = next(queue)
                mine, images = images[: given.n_frames], images[given.n_frames :]
                row.append(VideoLayout(len(row), tuple(
                    _moment(number, image, given) for number, image in enumerate(mine)
                )))  # fmt: skip
            rows.append(row)
        return rows

    def _check_videos_alone(self, batch: PictureBatch) -> None:
        if batch.sizes or any(video.n_frames is None for video in batch.videos):
            raise PromptError(
                "InternVL reads pictures and frames of videos by the same tokens, so a prompt has "
                "either, and a video is given as a list of frames."
            )

    def pictures(self, batch: PictureBatch) -> list[Picture]:
        """A picture is one run of image tokens: its tiles, then its thumbnail."""
        config, n_frames = batch.config, self.count_images(batch.inputs)
        patch = config.vision_config.patch_size
        patch = (patch, patch) if isinstance(patch, int) else (patch[1], patch[0])
        frame = Frame(batch.frame, patch, _merge(config), batch.vision.n_class_tokens)
        runs = [len(run) for places in batch.places for run in runs_of(places)]
        counts = [n // frame.n_tokens for n in runs]
        if sum(runs) != n_frames * frame.n_tokens or any(n % frame.n_tokens for n in runs):
            raise PromptError(
                f"{n_frames} frames (tiles and thumbnails) of {frame.n_tokens} positions need "
                f"{n_frames * frame.n_tokens} image tokens; the prompt holds {sum(runs)}, in "
                f"runs of {runs}. Write one <image> for each picture."
            )
        if batch.sizes and len(counts) != len(batch.sizes):
            raise PromptError(
                f"The text has {len(counts)} runs of image tokens for {len(batch.sizes)} pictures: "
                "write <image> for each, and leave the tokens around it to the processor."
            )
        tilings = [
            _tiling(n - 1, batch.processor, batch.size(i)) if n > 1 else None
            for i, n in enumerate(counts)
        ]
        return tiled_pictures(batch, frame, counts, tilings)


def _moment(number: int, image: ImageLayout, given: GivenVideo) -> FrameLayout:
    seconds = (number / given.fps, (number + 1) / given.fps) if given.fps else None
    return FrameLayout(
        number, (number,), image.text, seconds, vision=image.vision, projector=image.projector
    )


def _merge(config: Any) -> int:
    return int(1 / config.downsample_ratio)


def _tiling(n_tiles: int, processor: Any, size: Size | None) -> tuple[int, int] | None:
    """Rows and columns of tiles, by the image processor's own function."""
    image_processor = getattr(processor, "image_processor", None)
    home = import_module(type(image_processor).__module__)
    if size is None or not hasattr(home, "get_optimal_tiled_canvas"):
        return None
    tile = (size_entry(image_processor.size, "height"), size_entry(image_processor.size, "width"))
    limits = (image_processor.min_patches, image_processor.max_patches)
    cols, rows = home.get_optimal_tiled_canvas((size[1], size[0]), tile, *limits)
    return (rows, cols) if rows * cols == n_tiles else None
