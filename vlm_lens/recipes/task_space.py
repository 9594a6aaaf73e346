"""The space of tasks: do vectors lie together by task or by modality, and what of their context?

Luo et al. 2025 (arXiv 2410.22330), Figure 2, with numbers that the paper does not report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from vlm_lens.model.hooked_vlm import HookedVLM
from vlm_lens.recipes.base import RecipeError
from vlm_lens.recipes.parts.task_recipe import TaskRecipe
from vlm_lens.recipes.parts.vector_sources import Source, last_rows, open_prompts, relative_layer
from vlm_lens.recipes.result import Result
from vlm_lens.tasks import Task
from vlm_lens.terms import CONTEXT, EMBED, VECTORS, Layer, layer_name

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["TaskSpace", "TaskSpaceResult"]


@dataclass(frozen=True)
class TaskSpace(TaskRecipe):
    """Maps context embeddings and task vectors, and tests by what they cluster.

    From each prompt of examples, the last one's answer open, two points are taken after one block
    and through the final norm. The *task vector* is the last position, the delimiter. The *context*
    is the last example's input, the mean over its positions, of its name or its picture; template
    and answers are left out. (The paper does not say whether its points are single positions.) Each
    set is drawn by t-SNE (van der Maaten and Hinton 2008). How far points cluster by task, and by
    modality, is the silhouette (Rousseeuw 1987) in the full space, -1 to 1, and its p-value is the
    share of random relabellings that give as much. Tasks of one domain share their inputs, so the
    domain alone makes clusters of tasks: where there are such tasks, there is a silhouette by
    domain, and one of the tasks within each domain.

    Attributes:
        tasks: `"all"` for the paper's six, the name of a shipped task, a Task, or several.
        sources: Where tasks are read from. An instruction is one point a task, and no part of the
            silhouettes.
        layer: A 0-based block, by its output, or `"embed"`; by default as deep as the paper's
            block 22 of 32.
        points: How many points each task and modality has; no more than the split has rows.
        n_examples: How many examples a prompt has, the last one open.
        seed: The seed of the draw, of the map and of the relabellings.
        split: Whose rows are drawn.
        perplexity: t-SNE's; lowered where there are few points.
        relabellings: How many random relabellings the test makes.
        batch_size: How many prompts run together.
    """

    sources: tuple[Source, ...] = ("text", "image", "instruction")
    layer: int | Literal["embed"] | None = None
    points: int = 30
    n_examples: int = 5
    seed: int = 1
    split: Literal["validation", "test"] = "test"
    perplexity: float = 30.0
    relabellings: int = 199
    batch_size: int = 16

    def measure(self, vlm: HookedVLM) -> TaskSpaceResult:
        """Reads the points, maps them, and tests the labels."""
        layer = self.layer
        if layer is None:
            layer = relative_layer(22, 32, vlm.cfg.n_layers)
        found = []
        for task in self.progress(self.chosen_tasks(), "reading"):
            for source in self.sources:
                found += self.read(vlm, task, source, layer)
        points = pd.DataFrame(found)
        rows, maps = [], []
        for name, mine in points.groupby("set", sort=False):
            values = np.stack(mine["value"].tolist())
            maps.append(self.mapped(values).set_axis(mine.index))
            many = (mine["source"] != "instruction").to_numpy()
            rows += [(name, *one) for one in self.tested(values[many], mine[many])]
        points = points.drop(columns="value").join(pd.concat(maps))
        columns = ["set", "by", "silhouette", "p", "chance", "chance_high"]
        table = pd.DataFrame(rows, columns=columns)
        notes = (
            f"Output of {layer_name(layer)} of 0..{vlm.cfg.n_layers - 1}, after the final norm. "
            "Silhouette in the full space; p: share of "
            f"{self.relabellings} random relabellings that give as much (the true one counted in); "
            "chance: their mean and 95th percentile.",
            "Tasks are relabelled within each modality, modalities within each task; 'task within "
            "domain': silhouettes among the tasks of each domain. Tasks of a domain draw the same "
            "rows, so their contexts hold the same inputs.",
        )
        return TaskSpaceResult(table, {"points": points}, {"layer": layer}, notes)

    @torch.no_grad()
    def read(
        self, vlm: HookedVLM, task: Task, source: Source, layer: Layer
    ) -> list[dict[str, Any]]:
        """The points of one task and source: which set, and the vector as `value`."""
        prompts = open_prompts(task, source, seed=self.seed, n=self.n_examples, split=self.split)[
            : self.points
        ]
        rows = last_rows(task, source, seed=self.seed, n=self.n_examples, split=self.split)
        point = "hook_merged" if layer == EMBED else f"blocks.{layer}.hook_resid_post"
        found = []
        for start in range(0, len(prompts), self.batch_size):
            batch = vlm.as_prompt(list(prompts[start : start + self.batch_size]))
            _, cache = vlm.run_with_cache(batch, names_filter=[point], last_logits=1)
            for i, layout in enumerate(batch.layouts):
                about = {"task": task.name, "domain": task.domain or task.name, "source": source}
                places = {VECTORS: [layout.last]}
                if source != "instruction":
                    about["input"] = rows[start + i].input
                    places[CONTEXT] = (
                        layout.images[-1].positions
                        if source == "image"
                        else layout.span(rows[start + i].given(source), -1)
                    )
                for name, positions in places.items():
                    normed = vlm.ln_final(cache[point][i, list(positions)]).float().mean(0)
                    found.append({"set": name, **about, "value": normed.cpu().numpy()})
        return found

    def mapped(self, values: np.ndarray) -> pd.DataFrame:
        """t-SNE in two dimensions, columns `x` and `y`."""
        from sklearn.manifold import TSNE

        perplexity = min(self.perplexity, (len(values) - 1) / 3)
        tsne = TSNE(perplexity=perplexity, random_state=self.seed)
        return pd.DataFrame(tsne.fit_transform(values), columns=["x", "y"])

    def tested(self, values: np.ndarray, points: pd.DataFrame) -> list[tuple[Any, ...]]:
        """Each labelling that says something: its name and what `silhouette` gives.

        Args:
            values: The points.
            points: Their `task`, `domain` and `source`.
        """
        task, domain, modality = (points[c].to_numpy() for c in ("task", "domain", "source"))
        n_tasks, n_domains = len(set(task)), len(set(domain))
        found = []
        if n_tasks > 1:
            found.append(("task", *self.silhouette(values, task, within=modality)))
        if len(set(modality)) > 1:
            found.append(("modality", *self.silhouette(values, modality, within=task)))
        if 1 < n_domains < n_tasks:
            found.append(("domain", *self.silhouette(values, domain, within=modality)))
            both = np.char.add(domain.astype(str), np.char.add(" ", modality.astype(str)))
            inside = self.silhouette(values, task, within=both, among=domain)
            found.append(("task within domain", *inside))
        return found

    def silhouette(
        self,
        values: np.ndarray,
        labels: Sequence[str],
        *,
        within: Sequence[str] | None = None,
        among: Sequence[str] | None = None,
    ) -> tuple[float, ...]:
        """The silhouette of a labelling, its p-value, and mean and 95 % quantile by chance.

        Args:
            values: The points.
            labels: The label of each.
            within: Groups in which labels are exchanged for the test; all points if None.
            among: Groups whose points are compared among themselves alone, such as domains; those
                with one label are left out.
        """
        from sklearn.metrics import pairwise_distances, silhouette_samples

        labels = np.asarray(labels)
        one = np.zeros(len(labels))
        within, among = (one if g is None else np.asarray(g) for g in (within, among))
        distances = pairwise_distances(values)
        np.fill_diagonal(distances, 0)
        groups = [np.flatnonzero(among == g) for g in dict.fromkeys(among.tolist())]
        groups = [at for at in groups if len(set(labels[at])) > 1]
        strata = [np.flatnonzero(within == g) for g in dict.fromkeys(within.tolist())]

        def score(labels: np.ndarray) -> float:
            found = [
                silhouette_samples(distances[np.ix_(at, at)], labels[at], metric="precomputed")
                for at in groups
            ]
            return float(np.concatenate(found).mean())

        generator, chance = np.random.default_rng(self.seed), []
        for _ in range(self.relabellings):
            drawn = labels.copy()
            for at in strata:
                drawn[at] = generator.permutation(labels[at])
            chance.append(score(drawn))
        true = score(labels)
        p = (1 + sum(one >= true for one in chance)) / (1 + len(chance))
        return true, float(p), float(np.mean(chance)), float(np.quantile(chance, 0.95))

    def validate(self) -> None:
        """Checks the fields."""
        super().validate()
        if len(set(self.sources)) < len(self.sources) or not set(self.sources) & {"text", "image"}:
            raise RecipeError(
                f"TaskSpace.sources is {self.sources!r}; give 'text', 'image' or both, each once."
            )
        self.at_least(2, "points")
        self.at_least(1, "n_examples", "relabellings", "batch_size", "perplexity")

    def validate_for(self, vlm: HookedVLM) -> None:
        """Checks the layer, and that a model that is to see pictures can."""
        self.a_block(vlm)
        self.must_see(vlm, "sources")


class TaskSpaceResult(Result):
    """Maps and silhouettes.

    `table` has one row for each `set` (context, task vectors) and labelling `by` task, modality,
    domain and task within domain:
    `silhouette`, its `p`, and what random labels give (`chance`, `chance_high`).
    `tables["points"]` has the maps: `set`, `task`, `domain`, `source`, `input`, `x`, `y`.
    """

    def silhouette(self, points: str = VECTORS, by: str = "task") -> float:
        """One silhouette, of `"context"` or `"task vectors"`, by `"task"` or `"modality"`.

        Raises:
            RecipeError: There is none, for example by modality where there is one.
        """
        found = self.table[(self.table["set"] == points) & (self.table["by"] == by)]
        if found.empty:
            raise RecipeError(f"There is no silhouette of {points!r} by {by!r}:\n{self.table}")
        return float(found["silhouette"].iloc[0])

    def plots(self) -> dict[str, go.Figure]:
        """The two maps."""
        from vlm_lens.figures.space import space_maps

        return {"maps": space_maps(self.tables["points"], self.table, layer=self.values["layer"])}
