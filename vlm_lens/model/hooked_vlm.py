"""HookedVLM: a Hugging Face vision-language model with named activation points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from vlm_lens.errors import ModelError
from vlm_lens.hooked.habits import answers_habits
from vlm_lens.hooked.hooked_model import HookedModel, Interventions
from vlm_lens.layout.positions import Position
from vlm_lens.model.loading import check_device, load
from vlm_lens.prompts.maker import Pictures, Promptable
from vlm_lens.sweep import sweep
from vlm_lens.sweep.result import SweepResult

if TYPE_CHECKING:  # imported when they are used
    from vlm_lens.interop.nnsight import Trace
    from vlm_lens.scores import Scores


class HookedVLM(HookedModel):
    """Any place in a vision-language model's computation, by name, to read or to change.

    The Hugging Face model inside (`vlm.hf_model`) is never changed: hooks are put on for one run
    and taken off after it, and its attention implementation stays as it is.

    Args:
        hf_model: A `LlavaForConditionalGeneration`, `LlamaForCausalLM`, ... of a registered family.
        processor: Its processor (a tokenizer for a plain language model). Without one, prompts
            must be a processor's own output.

    Raises:
        ModelError: A model of a family that is not registered.
    """

    @classmethod
    @torch.inference_mode(False)  # weights made there would never get gradients
    @answers_habits
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device | None = None, **options: Any
    ) -> Self:
        """Loads a model by zoo name (`"toy-llava"`), folder, short name or Hub id.

        A short name, such as `"idefics2-8b"`, stands for a published checkpoint at one revision and
        with the settings of its study; `vlm_lens.model.checkpoints` lists them.

        Args:
            name: What to load.
            device: Where to put it; for several devices use `device_map` instead.
            **options: Passed to transformers: `revision`, `dtype`, `device_map`,
                `quantization_config`, `attn_implementation`, `trust_remote_code`, ...;
                `processor` overrides the checkpoint's own.

        Raises:
            ModelError: Nothing of that name, or no family for it.
        """
        if device is not None:
            if options.get("device_map") is not None:
                raise ModelError("Give device= or device_map=, not both.")
            check_device(device)
        model, processor = load(name, **options)
        vlm = cls(model if device is None else model.to(device), processor)
        vlm.__dict__["name"] = str(name)
        vlm.__dict__["loaded_as"] = str(name), {"device": device, **options}
        return vlm

    @classmethod
    def from_bridge(cls, bridge: Any, processor: Any = None) -> Self:
        """A HookedVLM made anew of the weights that a TransformerLens bridge holds.

        The bridge changes the model that it wraps, so its weights are copied into a new one.

        Args:
            bridge: What `TransformerBridge.boot_transformers` gives, its weights not processed.
            processor: The model's processor; the bridge's tokenizer by default, with which prompts
                have no pictures.

        Raises:
            ModelError: TransformerLens is not installed, the bridge's weights were processed, or
                the new model computes other logits than the bridge.
        """
        from vlm_lens.interop.transformer_lens import model_of

        vlm = cls(model_of(bridge), bridge.tokenizer if processor is None else processor)
        vlm.__dict__["name"] = str(bridge.cfg.model_name)
        return vlm

    def to_bridge(self) -> Any:
        """TransformerLens's bridge around a copy of the model, for its tools.

        `vlm_lens.interop.transformer_lens` has `to_cache` and `from_cache` for caches.

        Raises:
            ModelError: TransformerLens is not installed, has no adapter for the model's class, or
                its bridge computes other logits than the model.
        """
        from vlm_lens.interop.transformer_lens import to_bridge

        return to_bridge(self)

    @answers_habits
    def trace(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        interventions: Interventions = (),
        grad: bool = False,
        remote: bool = False,
    ) -> Trace:
        """Nnsight's deferred tracing, with points by name: `with vlm.trace(prompt) as tr:`.

        `tr["blocks.3.hook_resid_post"]` reads, edits in place and assignments write,
        `tr.logits` are the logits, `.save()` keeps a value after the block.

        Args:
            prompt: A Prompt, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            interventions: What to change before the block sees an activation.
            grad: Whether to record gradients.
            remote: Whether the block runs in a remote service, NDIF or `NDIF_HOST`, which holds the
                model; its key is in the environment, `NDIF_API_KEY`.

        Raises:
            VLMLensError: nnsight is not installed, the prompt does not fit, or the service fails.
        """
        from vlm_lens.interop.nnsight import Trace

        prompt = self.as_prompt(prompt, images)
        return Trace(self, prompt, interventions=interventions, grad=grad, remote=remote)

    @answers_habits
    def attention(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        at: Position | int | Sequence[int] | None = None,
        layers: Sequence[int] | int | None = None,
        heads: Sequence[int] | int | None = None,
        part: str = "language",
        weigh: str = "pattern",
        interventions: Interventions = (),
    ) -> Scores:
        """Where the last position, or others, look; see `vlm_lens.attention.attention`.

        Args:
            prompt: One prompt: a Prompt of one row, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            at: The queries; the last position by default.
            layers: Blocks, 0-based; all by default.
            heads: Heads, 0-based; all by default.
            part: `"language"`, `"vision"`, `"encoder"` or `"cross"`.
            weigh: `"pattern"` (shares, summing to 1 over keys), `"value"` or `"output"`.
            interventions: What to change in the run.

        Returns:
            Scores by `layer`, `head`, `query` (left out where there is one) and `position`.

        Raises:
            VLMLensError: A part, block, head or position that there is not.
        """
        from vlm_lens.attention import attention

        return attention(
            self, prompt, images, at=at, layers=layers, heads=heads, part=part, weigh=weigh,
            interventions=interventions,
        )  # fmt: skip

    @answers_habits
    def attribute(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        answer: str | int | Sequence[int] | None = None,
        to: str = "patches",
        method: str = "gradient",
        steps: int = 16,
        baseline: str = "mean",
        of: str = "logit",
    ) -> Scores:
        """What each token of an answer hangs on, by gradients; between two prompts: `Pair`.

        Args:
            prompt: One prompt: a Prompt of one row, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            answer: A text, a token id or several; the most likely next token by default.
            to: `"patches"`, `"pixels"`, or a point with positions.
            method: `"gradient"` (times input) or `"ig"` (integrated gradients).
            steps: Of `"ig"`.
            baseline: From which inputs are counted: `"mean"` of each picture, or `"zero"`.
            of: `"logit"` or `"logprob"`.

        Returns:
            Scores by `position`, and by `token` where the answer has several.

        Raises:
            VLMLensError: Something does not fit the model or the prompt.
        """
        from vlm_lens.attribution import attribute_inputs

        return attribute_inputs(
            self, prompt, images, answer=answer, to=to, method=method, steps=steps,
            baseline=baseline, of=of,
        )  # fmt: skip

    @answers_habits
    def decompose(
        self,
        prompt: Promptable,
        images: Pictures = None,
        *,
        at: Position | int | Sequence[int] | None = None,
        by: str = "component",
        token: str | int | None = None,
        tokens: Sequence[str | int] | None = None,
        direction: torch.Tensor | None = None,
        part: str = "language",
        layer: int | None = None,
        apply_norm: bool = True,
        interventions: Interventions = (),
    ) -> Scores:
        """A logit as the sum of what heads, MLPs and patches add; see `vlm_lens.decompose`.

        Args:
            prompt: One prompt: a Prompt of one row, text, or a processor's output.
            images: Pictures, where `prompt` is text.
            at: The positions; the last by default.
            token: Whose logit: an id or a text. Without one the parts are vectors.
            tokens: Several of them.
            direction: In place of a token, what parts are multiplied with, `[d_model]`.
            layer: The block whose output is taken apart; the last by default.
            part: `"language"`, or `"vision"`: what the tower brings to the projector's output.
            by: `"component"`, or `"source"`: what every head brings from every position.
            apply_norm: Whether parts go through the final norm, its scale held.
            interventions: What to change in the run.

        Returns:
            Scores by `component`, or by `layer`, `head` and `position`.

        Raises:
            VLMLensError: What cannot be taken apart, or a token or position that there is not.
        """
        from vlm_lens.decompose import decompose

        return decompose(
            self, prompt, images, at=at, token=token, tokens=tokens, direction=direction,
            layer=layer, part=part, by=by, apply_norm=apply_norm, interventions=interventions,
        )  # fmt: skip

    @answers_habits
    def sweep(
        self,
        prompt: Promptable,
        variants: Any,
        images: Pictures = None,
        *,
        measure: Any = "top1",
        engine: str = "auto",
        memory: int | None = None,
        save: str | Path | None = None,
        on: Any = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> SweepResult:
        """Measures many variants of one run, computing of each only what it can change.

        The plain run is made once. Variants run together as rows of a batch, each from the first
        layer and position that it touches; those that touch tower or projector start there, for the
        pictures that they touch. Models for which reuse would be wrong run in full, and the result
        says which variants did and why.

        Args:
            prompt: A Prompt, text, or a processor's output.
            variants: Interventions, a `Grid`, or `intervention.each_layer()`.
            images: Pictures, where `prompt` is text.
            measure: `"top1"`, `"logits"`, `"generate"`, tokens whose scores are wanted, a function
                of the last position's logits, or a `Measure`.
            engine: `"auto"`; `"replay"` to be refused where it cannot be; `"full"`.
            memory: Bytes that variants running together may take; 256 MB by default (4 GB on a
                GPU), or a quarter of what is free if that is less.
            save: A folder for finished variants; a sweep that was killed goes on from there.
            on: Where: `"loky"` for processes of this machine, `"ray"` or a cluster's address for
                workers of Ray, with settings a `Loky` or `Ray` of `vlm_lens.distributed`, or
                workers that are open; this process by default.
            batch_size: For a list of many texts or RawPrompts: how many of like length run
                together at the most. Records are then by prompt (`row`) and by variant; with
                `save` they stay on disk until they are asked for. One batch by default.
            progress: Whether to show a progress bar. Ctrl-C ends a sweep with what is finished.

        Raises:
            VLMLensError: A variant does not fit the model or the prompt (before any is run), or
                workers cannot be had.
        """
        return sweep(
            self, prompt, variants, images, measure=measure, engine=engine, memory=memory,
            save=save, on=on, batch_size=batch_size, progress=progress,
        )  # fmt: skip


__all__ = ["HookedVLM"]
