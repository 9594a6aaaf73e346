"""Dictionary: a sparse autoencoder or transcoder, and what is done with one on a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import torch

from vlm_lens.dictionaries import edits
from vlm_lens.dictionaries.attribution import attribution as attribution_of
from vlm_lens.dictionaries.edits import Splice
from vlm_lens.dictionaries.features import Chosen, FeatureScores
from vlm_lens.dictionaries.features import features as features_of
from vlm_lens.dictionaries.fidelity import Fidelity
from vlm_lens.dictionaries.fidelity import fidelity as fidelity_of
from vlm_lens.dictionaries.gallery import Gallery
from vlm_lens.dictionaries.gallery import gallery as gallery_of
from vlm_lens.dictionaries.layouts import saelens
from vlm_lens.dictionaries.layouts.parts import number
from vlm_lens.dictionaries.locate import SHIPPED, located
from vlm_lens.dictionaries.train import Settings, train
from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.interventions.steer import Steer
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import All, Position, as_position
from vlm_lens.serial import FrozenTensor, savable

if TYPE_CHECKING:
    from vlm_lens.hooked.hooked_model import HookedModel, Interventions, Pictures, Promptable
    from vlm_lens.measures import LogitMeasure


@savable
@dataclass(frozen=True, repr=False)
class Dictionary(DictionaryValue):
    """Features of a point's activation: encoded, decoded, over a picture, changed in a run."""

    @classmethod
    @answering
    def from_pretrained(
        cls,
        where: str | Path,
        name: str = "",
        *,
        point: str | None = None,
        point_out: str | None = None,
        k: int | None = None,
        dtype: torch.dtype | None = torch.float32,
        **hub: Any,
    ) -> Self:
        """Loads a dictionary from the Hub, from a folder, or a shipped one by its name.

        Layouts: Gemma Scope 2, EleutherAI's sparsify, SAELens, Qwen-Scope, circuit-tracer's
        transcoders; each has a file in `vlm_lens.dictionaries.layouts`, which draws it. Files hold
        safetensors and settings; a `.pt` is read with `weights_only=True`, so no code in a file is
        run.

        Args:
            where: `"toy-idefics2"` (ships with the package), a folder, or a Hub id.
            name: Which one of a repository: `"resid_post/layer_17_width_16k_l0_medium"`,
                `"model.layers.24"`, `"layer12"`, `"layer_12"`.
            point: The point it reads, where the files do not say it or say it otherwise.
            point_out: The point that a transcoder reconstructs, likewise; `point` for an
                autoencoder.
            k: How many features stay, for TopK.
            dtype: The dtype of its tensors; `None` leaves that of the file.
            **hub: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            DictionaryError: Nothing of that name, a layout that is not known, damaged files, or
                no point in them and none given.
        """
        folder, reader = located(where, name, **hub)
        origin = f"{where}/{name}".rstrip("/")
        found = reader.read(folder, origin)
        tensors = dict(found.tensors)
        if k is not None:
            tensors.pop("threshold", None)
            tensors["k"] = number(k)
        elif found.unsaid:
            raise DictionaryError(found.unsaid)
        reads = point or found.point
        writes = point_out or (found.point_out if found.transcodes else reads)
        if not reads or not writes:
            why = found.nowhere or f"The files of {origin} do not say which point they belong to."
            wanted = [] if reads else ["point='blocks.12.ln2.hook_normalized'"]
            wanted += [] if writes else ["point_out='blocks.12.hook_mlp_out'"]
            if not found.transcodes:
                wanted = ["point='blocks.12.hook_resid_post'"]
            raise DictionaryError(
                f"{why} Give Dictionary.from_pretrained(..., {', '.join(wanted)})."
            )
        about = {"layout": reader.name, "origin": origin, "model": found.model}
        held = {
            key: FrozenTensor(t.to(dtype) if dtype and t.is_floating_point() else t)
            for key, t in tensors.items()
        }
        return cls(
            held, reads, writes, {key: text for key, text in about.items() if text}, found.labels,
            "" if point or point_out else found.module,
        )  # fmt: skip

    @classmethod
    @answering
    def train(
        cls,
        vlm: HookedModel,
        prompts: Sequence[Any],
        point: str,
        *,
        n_features: int = 512,
        k: int = 16,
        places: int = 500_000,
        at: Position | int | None = None,
        batch: int = 1024,
        buffer: int = 32_768,
        lr: float = 2e-3,
        dead_after: int = 50_000,
        batch_size: int = 16,
        seed: int = 0,
        save: str | Path | None = None,
        progress: bool = True,
    ) -> Self:
        """Trains a TopK autoencoder on the activations of prompts (Gao et al. 2024).

        Activations are streamed: no more than one buffer of them is held.

        Args:
            vlm: The model.
            prompts: Texts, RawPrompts or Prompts; read again as often as needed.
            point: The point, by name.
            n_features: How many features.
            k: How many stay at each place.
            places: On how many places it is trained.
            at: Which places of each prompt; all but padding by default.
            batch: Places a step.
            buffer: Places that are held and shuffled.
            lr: Learning rate of Adam; it falls to 0 over the last fifth.
            dead_after: Places after which a feature that was not used counts as dead.
            batch_size: Prompts that run together at the most.
            seed: Of initial weights and orders.
            save: A folder for what was learned so far; a training that was killed goes on from
                there, and ends with the same numbers.
            progress: Whether to show a progress bar.

        Raises:
            VLMLensError: No prompts, no such point or place, settings that mean nothing, or a
                folder of another training.
        """
        settings = Settings(n_features, k, places, batch, buffer, lr, dead_after, seed)
        where = vlm.architecture.points[point]
        tensors = train(
            vlm, prompts, where, settings, at=None if at is None else as_position(at),
            batch_size=batch_size, save=save, progress=progress,
        )  # fmt: skip
        held = {name: FrozenTensor(tensor) for name, tensor in tensors.items()}
        about = {"layout": "trained here", "model": vlm.name}
        return cls(held, where.name, where.name, about)

    @answering
    def fidelity(
        self,
        vlm: HookedModel,
        prompts: Sequence[Any],
        *,
        splice: bool = True,
        batch_size: int = 16,
    ) -> Fidelity:
        """How well it knows a model's activations, by kind of position: picture, text, special.

        Args:
            vlm: The model.
            prompts: Texts, RawPrompts or Prompts.
            splice: Whether to run each prompt on the reconstruction too, at each kind of position,
                and say what the next token loses.
            batch_size: Prompts that run together at the most.

        Raises:
            VLMLensError: The dictionary does not fit the model, or there are no prompts.
        """
        return fidelity_of(self, vlm, prompts, splice=splice, batch_size=batch_size)

    def save_pretrained(self, folder: str | Path, card: str = "") -> Path:
        """Writes a folder in SAELens's layout, which SAELens and `from_pretrained` load.

        `save(stem)` and `load(stem)` keep it as a value, as interventions are kept.

        Args:
            folder: The folder.
            card: The text of its `README.md`; none by default.

        Returns:
            The folder.
        """
        return saelens.write(self, folder, card)

    @property
    def card(self) -> str:
        """The card of a shipped dictionary; empty for others."""
        path = SHIPPED / self.about.get("origin", "-") / "README.md"
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def at(self, point: str, point_out: str | None = None) -> Self:
        """The same dictionary at another point.

        Args:
            point: What it reads.
            point_out: What it reconstructs; `point` by default.
        """
        return replace(self, point=point, point_out=point_out or point, module="")

    # ------------------------------------------------------------------ reading

    @answering
    def features(
        self,
        vlm: HookedModel,
        prompt: Promptable,
        images: Pictures = None,
        *,
        at: Position | int | Sequence[int] | None = None,
        features: Chosen = None,
        interventions: Interventions = (),
    ) -> FeatureScores:
        """What it sees at each position of a prompt.

        Args:
            vlm: The model.
            prompt: One prompt: a Prompt of one row, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            at: Where; everywhere by default.
            features: Which features; by default those that are not 0 somewhere.
            interventions: What to change in the run.

        Returns:
            Scores by `position` and `feature`; `.top(5).over_picture()` lays the five strongest
            over the picture.

        Raises:
            VLMLensError: The dictionary does not fit the model, or a position that is not there.
        """
        made = vlm.as_prompt(prompt, images)
        return features_of(self, vlm, made, at, features, interventions)

    @answering
    def gallery(
        self,
        vlm: HookedModel,
        prompts: Sequence[Any],
        features: Chosen = None,
        *,
        k: int = 8,
        captions: Sequence[str] | None = None,
        batch_size: int = 16,
    ) -> Gallery:
        """The pictures in which features are strongest, each patch shaded by how strong.

        Args:
            vlm: The model.
            prompts: Prompts that show pictures; they stream by, one batch at a time.
            features: Which; by default those that the card describes, else the twelve strongest.
            k: How many pictures of each.
            captions: What each prompt is called.
            batch_size: Prompts that run together at the most.

        Returns:
            A gallery: shows itself in Jupyter, `save("gallery.html")` writes a page, `table` holds
            the numbers.

        Raises:
            VLMLensError: The dictionary does not fit the model, or no prompt shows a picture.
        """
        return gallery_of(
            self, vlm, prompts, features, k=k, captions=captions, batch_size=batch_size
        )

    @answering
    def attribution(
        self,
        vlm: HookedModel,
        prompt: Promptable,
        measure: LogitMeasure,
        images: Pictures = None,
        *,
        at: Position | int | Sequence[int] | None = None,
        features: Chosen = None,
    ) -> FeatureScores:
        """Which features a measure hangs on, to first order: activation times gradient.

        Args:
            vlm: The model.
            prompt: One prompt: a Prompt of one row, text, or a processor's output.
            measure: `LogitDiff("Paris", "Lima")`, `Prob("Paris")`, ...
            images: Pictures, where `prompt` is text.
            at: Where; everywhere by default.
            features: Which features; by default those that are not 0 somewhere.

        Returns:
            Scores by `position` and `feature`, in the measure's unit: what a change of the feature
            by its own size does, the error term held.

        Raises:
            VLMLensError: A measure without gradient, or a dictionary that does not fit.
        """
        made = vlm.as_prompt(prompt, images)
        return attribution_of(self, vlm, made, measure, at, features)

    # ------------------------------------------------------------------ changing

    def splice(self, at: Position | int | None = None, *, error: bool = True) -> Splice:
        """The model runs on with `decode(encode(x))`, plus what that leaves out.

        A transcoder reads `x` at `point` and stands in for what is at `point_out`.

        Args:
            at: Where; every position of the prompt by default.
            error: Whether the error term is kept; without it the run shows what is lost.

        Raises:
            DictionaryError: BatchTopK without a threshold; in a run, a transcoder between blocks.
        """
        return edits.splice(self, _everywhere(at), error)

    def ablate(self, features: edits.Features, at: Position | int | None = None) -> Splice:
        """Takes features away, and leaves everything else: `y - f W_dec[feature]`.

        Args:
            features: One or more.
            at: Where; every position of the prompt by default. `Generated()` acts at each new
                token.

        Raises:
            DictionaryError: No such feature, or as for `splice`.
        """
        return edits.ablate(self, features, _everywhere(at))

    def clamp(
        self,
        features: edits.Features,
        value: float | Sequence[float],
        at: Position | int | None = None,
    ) -> Splice:
        """Sets features to values, and leaves everything else.

        Args:
            features: One or more.
            value: What they are set to, one number or one a feature.
            at: As for `ablate`.

        Raises:
            DictionaryError: No such feature, or as for `splice`.
        """
        return edits.clamp(self, features, value, _everywhere(at))

    def steer(
        self, feature: SupportsIndex, alpha: float, at: Position | int | None = None
    ) -> Steer | Splice:
        """Adds `alpha W_dec[feature]` to what the dictionary reconstructs.

        Args:
            feature: Which.
            alpha: How much, in units of the feature's activation.
            at: Where; every position of the prompt by default, `All() + Generated()` for each new
                token too.

        Raises:
            DictionaryError: No such feature.
        """
        return edits.steer(self, feature, alpha, _everywhere(at))


def _everywhere(at: Position | int | None) -> Position | int:
    return All() if at is None else at


__all__ = ["Dictionary"]
