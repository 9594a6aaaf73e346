"""Linear probes by layer and kind of position, with the controls that make them evidence.

```
accuracy      multinomial logistic regression on standardised states, entities held out
control       the same with a label drawn for each entity (Hewitt and Liang 2019, arXiv 1909.03368)
selectivity   accuracy - control
text only     the same prompts without their pictures
majority      the most frequent label, always
```

A split by picture or by prompt lets a probe recognise the entity, and look its label up: with
`split="prompt"` that can be seen. With entities held out, the control task cannot be learned.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.keywords import answering
from vlm_lens.layout.positions import Images, Last, Position, as_position
from vlm_lens.probes.data import ProbeError, ProbeSet, as_set
from vlm_lens.reading.pooled import points_by_layer, pooled_states
from vlm_lens.scores.scores import Scores, scores

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SPLITS = ("entity", "prompt")


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """Accuracies by `layer` and `kind` of position, between 0 and 1.

    Attributes:
        accuracy: On held-out examples.
        control: Of the control task, averaged over draws.
        text_only: Of the prompts without pictures, at the kinds that these have; `None` where no
            prompt shows a picture.
        majority: The share of the most frequent label.
        about: What was probed.
    """

    accuracy: Scores
    control: Scores
    text_only: Scores | None
    majority: float
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def selectivity(self) -> Scores:
        """Accuracy less that of the control task."""
        return replace(self.accuracy - self.control, name="selectivity")

    def to_dataframe(self) -> pd.DataFrame:
        """A row a layer and kind: accuracy, control, selectivity, text only, majority."""
        parts = {"accuracy": self.accuracy, "control": self.control,
                 "selectivity": self.selectivity}  # fmt: skip
        table = self.accuracy.to_dataframe()[["layer", "kind"]]
        for name, one in parts.items():
            table[name] = one.to_dataframe()[one.name].to_numpy()
        if self.text_only is not None:
            without = self.text_only.to_dataframe().rename(
                columns={self.text_only.name: "text_only"}
            )
            table = table.merge(without, on=["layer", "kind"], how="left")
        return table.assign(majority=self.majority)

    def plot(self) -> go.Figure:
        """Accuracy against the layer, a line a kind, with control, text only and majority."""
        from vlm_lens.figures.probes import probe_figure

        return probe_figure(self.to_dataframe().to_dict("records"), str(self.about.get("name", "")))

    def __repr__(self) -> str:
        about = "; ".join(f"{k} {v}" for k, v in self.about.items())
        best = self.to_dataframe().sort_values("accuracy", ascending=False).head(6)
        return f"ProbeResult({about})\n{best.to_string(index=False, float_format='%.2f')}"

    def _repr_html_(self) -> str:
        return self.to_dataframe().to_html(index=False, float_format="%.2f", border=0)


@answering
def probe(
    vlm: HookedModel,
    examples: ProbeSet | str | Sequence[Any],
    *,
    at: Mapping[str, Position | int] | None = None,
    points: str = "blocks.*.hook_resid_post",
    split: str = "entity",
    folds: int = 5,
    controls: int = 3,
    strength: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
) -> ProbeResult:
    """Trains a linear probe at each layer and kind of position, by cross-validation.

    Args:
        vlm: The model.
        examples: A ProbeSet; the name of a task, whose entities are shown; or rows of (prompt,
            label, entity).
        at: Name -> position, whose places are averaged; `{"image": Images(), "last": Last()}` by
            default, the first only where there are pictures.
        points: Which point of each block.
        split: `"entity"`: no entity on both sides. `"prompt"`: by prompt, which leaks entities.
        folds: How many parts each is held out of.
        controls: How many control tasks are drawn.
        strength: scikit-learn's `C`, the inverse of the penalty.
        seed: Of splits and control tasks.
        batch_size: Prompts that run together at the most.

    Raises:
        ProbeError: Fewer entities of some class than folds, or settings that mean nothing.
        VLMLensError: A point or position that there is not.
    """
    data = as_set(examples)
    if split not in SPLITS:
        raise ProbeError(f"split is 'entity' or 'prompt', not {split!r}.")
    if controls < 1 or folds < 2 or not strength > 0:
        raise ProbeError("folds is at least 2, controls at least 1, and strength above 0.")
    usual: dict[str, Position | int] = {"last": Last()}
    if data.shows_pictures:
        usual = {"image": Images(), **usual}
    places = {name: as_position(p) for name, p in (at or usual).items()}
    _check_folds(data, folds, split)
    layers = [point.layer or 0 for point in points_by_layer(vlm, points)]
    states = pooled_states(vlm, data.prompts, places, points=points, batch_size=batch_size)
    labels = np.array(data.labels)
    parts = _splits(data, labels, split, folds, seed)
    drawn = [_control(data, np.random.default_rng((seed, i))) for i in range(controls)]

    def table(of: Mapping[str, Any], target: np.ndarray, parts: list) -> np.ndarray:
        return np.array(
            [[_accuracy(x[:, i].numpy(), target, parts, strength) for x in of.values()]
             for i in range(len(layers))]
        )  # fmt: skip

    about = {
        "model": vlm.name, "name": data.name, "points": points, "split": split,
        "examples": len(data), "entities": len(set(data.entities)), "folds": folds, "seed": seed,
    }  # fmt: skip

    def made(values: np.ndarray, kinds: Sequence[str], name: str) -> Scores:
        return scores(values, {"layer": layers, "kind": list(kinds)}, name=name, about=about)

    accuracy = made(table(states, labels, parts), list(places), "accuracy")
    by_control = [table(states, c, _splits(data, c, split, folds, seed)) for c in drawn]
    control = made(np.mean(by_control, axis=0), list(places), "control")
    text_only = None
    if data.shows_pictures:
        rest = {n: p for n, p in places.items() if not isinstance(p, Images)}
        if rest:
            texts = data.text_only()
            distinct = list(dict.fromkeys(texts))  # equal texts get equal states, to the last bit
            read = pooled_states(vlm, distinct, rest, points=points, batch_size=batch_size)
            of = [distinct.index(text) for text in texts]
            bare = {name: states[of] for name, states in read.items()}
            text_only = made(table(bare, labels, parts), list(rest), "text only")
    return ProbeResult(accuracy, control, text_only, data.majority, about)


def _check_folds(data: ProbeSet, folds: int, split: str) -> None:
    of = data.entities if split == "entity" else range(len(data))
    for label in set(data.labels):
        n = len({e for e, mine in zip(of, data.labels, strict=True) if mine == label})
        if n < folds:
            what = "entities" if split == "entity" else "prompts"
            raise ProbeError(
                f"{label!r} has {n} {what}, fewer than the {folds} folds: leave it out, or take "
                "fewer folds."
            )


def _splits(
    data: ProbeSet, labels: np.ndarray, split: str, folds: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    blank = np.zeros((len(labels), 1))
    if split == "prompt":
        cut = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return list(cut.split(blank, labels))
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(cut.split(blank, labels, groups=np.array(data.entities)))


def _control(data: ProbeSet, draw: np.random.Generator) -> np.ndarray:
    """The entities' labels, dealt out among the entities anew."""
    of = dict(zip(data.entities, data.labels, strict=True))
    dealt = dict(zip(of, draw.permutation(list(of.values())), strict=True))
    return np.array([dealt[entity] for entity in data.entities])


def _accuracy(
    x: np.ndarray, labels: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]], strength: float
) -> float:
    """The share of held-out examples that are classified rightly."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right = 0
    for train, test in parts:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its accuracy is what is told
            model.fit(x[train], labels[train])
        right += int((model.predict(x[test]) == labels[test]).sum())
    return right / sum(len(test) for _, test in parts)


__all__ = ["SPLITS", "ProbeResult", "probe"]
