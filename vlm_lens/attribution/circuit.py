"""A circuit: some edges of the graph, and what the model does with those alone.

```
run         the clean prompt; each receiver reads the stream with every sender whose edge to it is
            outside the circuit exchanged for what it adds elsewhere
elsewhere   in the corrupt run (counterfactual), or on the mean over other prompts

faithfulness = (m(circuit) - m(none)) / (m(all) - m(none))
```

One forward for each circuit. Means leave the data; the counterfactual does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm_lens.attribution.between import bound_to
from vlm_lens.attribution.graph import LOGITS, Graph
from vlm_lens.attribution.refusal import AttributionError
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.measures.base import Measure, at_last
from vlm_lens.points.placement import called
from vlm_lens.points.sites import submodule
from vlm_lens.prompts.prompt import Prompt

Edge = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Counterpart:
    """Two prompts of one shape, and what is measured."""

    clean: Prompt = field(repr=False)
    corrupt: Prompt = field(repr=False)
    measure: Measure


@dataclass(frozen=True)
class Circuit:
    """Edges, as (sender, receiver).

    Attributes:
        edges: The edges.
        asked: The prompts that it was found on.
    """

    edges: tuple[Edge, ...]
    asked: Counterpart | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.edges)

    @property
    def nodes(self) -> list[str]:
        """The parts that it goes through: `input`, `L2H2`, `L3 mlp`, `logits`."""
        ends = [end for sender, receiver in self.edges for end in (sender, _part_of(receiver))]
        return list(dict.fromkeys(ends))

    def connected(self) -> Circuit:
        """Without edges that lie on no way from the input to the logits."""
        edges = list(self.edges)
        while True:
            fed = {"input"} | {_part_of(r) for _, r in edges}
            read = {s for s, _ in edges}
            kept = [
                (s, r) for s, r in edges
                if _fed(s, fed) and (r == LOGITS or _feeds(r, read))
            ]  # fmt: skip
            if len(kept) == len(edges):
                return replace(self, edges=tuple(kept))
            edges = kept

    def faithfulness(
        self,
        vlm: HookedModel,
        *,
        clean: Prompt | None = None,
        corrupt: Prompt | None = None,
        measure: Measure | None = None,
        outside: Sequence[Prompt] | str = "counterfactual",
    ) -> float:
        """How much of the measure's difference the circuit alone makes: 1 all of it, 0 none.

        Args:
            vlm: The model.
            clean: A prompt; the one that the circuit was found on by default.
            corrupt: Its counterpart.
            measure: What is measured; as when it was found by default.
            outside: What edges outside carry: `"counterfactual"`, the corrupt run's values, or
                prompts of the same shape, over whose values the mean is taken.

        Raises:
            AttributionError: No prompts are known, or prompts of another shape.
        """
        run = self._run(vlm, clean, corrupt, measure, outside)
        whole, none = run.measured(None), run.measured(())
        if abs(whole - none) < 1e-6 * max(1.0, abs(whole)):
            raise AttributionError("The measure is the same with all edges and with none.")
        return (run.measured(self.edges) - none) / (whole - none)

    def _run(self, vlm: HookedModel, *given: Any) -> _Run:
        """Runs of a prompt with some edges alone; `given` as for `faithfulness`, in order."""
        usual = (None, None, None, "counterfactual")
        return _Run.of(vlm, self.asked, *given, *usual[len(given) :])

    def __repr__(self) -> str:
        if not self.edges:
            return "Circuit(no edges: none of those chosen lies on a way from input to logits)"
        shown = ", ".join(f"{s} -> {r}" for s, r in self.edges[:8])
        more = f", ... ({len(self)} in all)" if len(self) > 8 else ""
        return f"Circuit({len(self)} edges: {shown}{more})"


def _part_of(receiver: str) -> str:
    """The part whose input it is; of shared keys and values the block's."""
    first, _, kind = receiver.partition(" ")
    if kind in ("q", "k", "v"):
        return first
    return f"{first} heads" if kind[:1] in "kv" and kind[1:].isdigit() else receiver


def _fed(sender: str, fed: set[str]) -> bool:
    block = sender.partition("H")[0]
    added = sender.endswith(" added")
    return sender in fed or added or ("H" in sender and f"{block} heads" in fed)


def _feeds(receiver: str, read: set[str]) -> bool:
    part = _part_of(receiver)
    if part.endswith(" heads"):
        return any(s.startswith(f"{part.removesuffix(' heads')}H") for s in read)
    return part in read


class _Run:
    """Runs of one prompt with some edges at their own values and all others at given ones."""

    def __init__(self, vlm: HookedModel, prompt: Prompt, measure: Measure, given: Tensor,
                 names: Sequence[str], stages: Sequence[float], graph: Graph):  # fmt: skip
        self._vlm, self._prompt, self._graph = vlm, prompt, graph
        self._bound = bound_to(vlm, prompt, measure)
        self._given, self._names = given, list(names)
        self._allowed = graph.allowed(stages)

    @classmethod
    def of(
        cls, vlm: HookedModel, asked: Counterpart | None, clean: Prompt | None,
        corrupt: Prompt | None, measure: Measure | None, outside: Sequence[Prompt] | str,
    ) -> _Run:  # fmt: skip
        """The runs that a faithfulness asks for."""
        prompt = clean or (asked.clean if asked else None)
        other = corrupt or (asked.corrupt if asked and clean is None else None)
        measured = measure or (asked.measure if asked else None)
        if prompt is None or measured is None:
            raise AttributionError(
                "This circuit knows no prompts: pass clean=, corrupt=, measure=."
            )
        if isinstance(outside, str):
            if outside != "counterfactual" or other is None:
                raise AttributionError(
                    "outside is 'counterfactual' (with corrupt= where clean= is given) or a list "
                    f"of prompts, not {outside!r}."
                )
            others: Sequence[Prompt] = [other]
        else:
            others = list(outside)
        if not others or any(len(p.layout) != len(prompt.layout) for p in others):
            raise AttributionError(
                f"What stands outside comes from prompts of {len(prompt.layout)} positions, as "
                "this one has."
            )
        graph = Graph(vlm)
        wanted, total = set(graph.names), None
        for one in others:
            _, cache = vlm.run_with_cache(one, names_filter=lambda n: n in wanted)
            names, stages, found = graph.senders(cache)
            total = found if total is None else total + found
        return cls(vlm, prompt, measured, total / len(others), names, stages, graph)

    @torch.no_grad()
    def measured(self, edges: Sequence[Edge] | None) -> float:
        """The measure with these edges alone; `None` for all."""
        hooks = [] if edges is None else self._hooks(self._outside(edges))
        with self._vlm.hooks(hooks):
            logits = self._vlm.run(self._prompt)
        last = at_last(logits, self._prompt.layouts, self._bound.n_last)
        return float(self._bound.values(last).sum())

    def _outside(self, edges: Sequence[Edge]) -> np.ndarray:
        """True for each edge that is not among these, `[sender, receiver]`."""
        ends = [r.name for r in self._graph.receivers]
        outside = self._allowed.copy()
        for sender, receiver in edges:
            if sender not in self._names or receiver not in ends:
                raise AttributionError(f"There is no edge {sender} -> {receiver} in this model.")
            outside[self._names.index(sender), ends.index(receiver)] = False
        return outside

    def _hooks(self, outside: np.ndarray) -> list[tuple[str, Callable]]:
        """Functions that keep what senders add, and give each receiver its own stream."""
        graph, seen = self._graph, _Seen(self._names, self._given, outside)
        ends = {r.name: i for i, r in enumerate(graph.receivers)}
        hooks: list[tuple[str, Callable]] = []
        for layer in range(graph.n_layers):
            name = partial(graph.stream.name, layer)
            hooks.append((name("hook_resid_pre"), seen.keep_stream(layer)))
            for kind in "qkv":
                columns = [ends[r.name] for r in graph.receivers
                           if (r.layer, r.kind) == (layer, kind)]  # fmt: skip
                point = graph.arch.points[name(f"attn.hook_{kind}")]
                project = _projection(graph, point, layer)
                hooks.append((point.name, seen.by_head(columns, project)))
            hooks.append((name("attn.hook_z"), self._keep_heads(seen, layer)))
            hooks.append((name("hook_resid_mid"), seen.keep("stream")))
            norm = graph.norm(layer, 2)
            hooks.append((name("ln2.hook_normalized"), seen.whole(ends[f"L{layer} mlp"], norm)))
            hooks.append((name("hook_mlp_out"), seen.keep_sender(f"L{layer} mlp")))
        last = graph.stream.name(graph.n_layers - 1, "hook_resid_post")
        hooks.append((last, seen.keep("stream")))
        final = graph.norm(None)
        hooks.append(("ln_final.hook_normalized", seen.whole(ends[LOGITS], final)))
        return hooks

    def _keep_heads(self, seen: _Seen, layer: int) -> Callable:
        stream = self._graph.stream

        def keep(z: Tensor, hook: Any) -> None:
            heads = stream.reaching(layer, z)
            for head, value in enumerate(heads.of(z)[0].to(self._given.device).float()):
                seen.senders[f"L{layer}H{head}"] = value

        return keep


class _Seen:
    """What senders have added so far in a run, and the stream as receivers find it.

    They lie where what is given does.
    """

    def __init__(self, names: Sequence[str], given: Tensor, outside: np.ndarray):
        self._names, self._given = names, given
        self._outside = torch.from_numpy(outside).to(given.device)
        self.senders: dict[str, Tensor] = {}
        self.stream: Tensor | None = None
        self._after: Tensor | None = None

    def keep(self, what: str) -> Callable:
        def kept(x: Tensor, hook: Any) -> None:
            self._after = x.to(self._given.device)
            setattr(self, what, self._after)

        return kept

    def keep_sender(self, name: str) -> Callable:
        def kept(x: Tensor, hook: Any) -> None:
            x = x.to(self._given.device)
            self.senders[name] = x.float()
            self._after = None if self.stream is None else self.stream + x

        return kept

    def keep_stream(self, layer: int) -> Callable:
        def kept(x: Tensor, hook: Any) -> None:
            x, added = x.to(self._given.device), f"L{layer - 1} added"
            if not layer:
                self.senders["input"] = x.float()
            elif added in self._names:
                self.senders[added] = (x - self._after).float()
            self.stream = x

        return kept

    def _streams(self, columns: Sequence[int]) -> Tensor:
        """The stream of each receiver, `[receiver, batch, pos, d_model]`."""
        known = [i for i, name in enumerate(self._names) if name in self.senders]
        now = torch.stack([self.senders[self._names[i]] for i in known])
        change = self._given[known] - now
        mask = self._outside[known][:, list(columns)].to(change)
        return self.stream + torch.einsum("sr,sbpd->rbpd", mask, change).to(self.stream)

    def by_head(self, columns: Sequence[int], project: Callable[[Tensor], Tensor]) -> Callable:
        """Queries, keys or values, each head of its own stream."""

        def replaced(x: Tensor, hook: Any) -> Tensor:
            made = project(self._streams(columns))  # [receiver, batch, pos, head, d_head]
            return torch.stack([made[i, :, :, i] for i in range(len(columns))], 2)

        return replaced

    def whole(self, column: int, norm: Callable[[Tensor], Tensor]) -> Callable:
        """What a norm makes of one receiver's stream."""
        return lambda x, hook: called(norm, self._streams([column])[0])


def _projection(graph: Graph, point: Any, layer: int) -> Callable[[Tensor], Tensor]:
    """What makes queries, keys or values of streams: norm, projection, view by heads."""
    norm, module = graph.norm(layer), submodule(graph.vlm.hf_model, point.site.module)

    def project(streams: Tensor) -> Tensor:
        return point.site.view.split(called(module, called(norm, streams)), streams.shape[0])

    return project
