"""Videos in a prompt: lists of frames, or files that the processor reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_lens.errors import PromptError
from vlm_lens.families import GivenVideo
from vlm_lens.pictures import as_picture

VIDEO = "<video>"

Clip = Sequence[Image.Image | str | Path] | str | Path
Videos = Sequence[Clip] | None


def clips_of(texts: Sequence[str], videos: Videos) -> list[str | list[Image.Image]]:
    """Videos in reading order, each a path or a list of frames.

    Raises:
        PromptError: They do not match the `<video>` of the texts, or are no videos.
    """
    if isinstance(videos, str | Path | Image.Image):
        raise PromptError("videos= is a list: videos=[frames] or videos=['clip.mp4'].")
    clips: list[str | list[Image.Image]] = []
    for clip in videos or ():
        if isinstance(clip, str | Path):
            clips.append(str(clip))
        elif isinstance(clip, list | tuple) and clip:
            clips.append([as_picture(frame) for frame in clip])
        else:
            raise PromptError(
                f"A video is a list of frames or a path, not {clip!r:.80}: a prompt of one is "
                "vlm.prompt(text, videos=[[frame, frame, ...]])."
            )
    n_marks = sum(text.count(VIDEO) for text in texts) if videos is not None else len(clips)
    if n_marks != len(clips):
        raise PromptError(
            f"The text has {n_marks} <video> placeholder{'s' * (n_marks != 1)} and {len(clips)} "
            f"video{'s' * (len(clips) != 1)} {'was' if len(clips) == 1 else 'were'} given: write "
            "one <video> for each."
        )
    return clips


def given(clip: str | list[Image.Image], fps: float | None) -> GivenVideo:
    """What is known of a video as it was given."""
    if isinstance(clip, str):
        return GivenVideo(fps=fps)
    return GivenVideo(clip[0].size, len(clip), fps)


def video_options(
    processor: Any, clips: Sequence[str | list[Image.Image]], fps: float | None
) -> dict[str, Any]:
    """What a processor is called with for videos: every frame given is read, none is left out.

    Raises:
        PromptError: It has no part for videos, or frames of a video differ in size.
    """
    if getattr(processor, "video_processor", None) is None:
        raise PromptError(
            "This processor has no part for videos: transformers' own need torchvision. Install "
            "it and load the model again, or pass the tensors of a processor that has one."
        )
    for clip in clips:
        if not isinstance(clip, str) and len({frame.size for frame in clip}) > 1:
            raise PromptError("The frames of a video are of one size; these differ.")
    options: dict[str, Any] = {"videos": list(clips)}
    if all(not isinstance(clip, str) for clip in clips):
        options["do_sample_frames"] = False
        if fps is not None:
            options["video_metadata"] = [
                {
                    "fps": fps,
                    "total_num_frames": len(clip),
                    "duration": len(clip) / fps,
                    "frames_indices": list(range(len(clip))),
                }
                for clip in clips
            ]
    return options
