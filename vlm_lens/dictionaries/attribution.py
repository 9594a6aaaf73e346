"""Which features an output hangs on, to first order.

```
score(place, feature) = f * d(measure)/df = f * (g . W_dec[feature])
g = d(measure)/d(point_out)
```

With the error term held as it is, the activation is linear in the features, so this is what a small
change of a feature does to the measure (attribution by features: Marks et al. 2024, arXiv
2403.19647). It is exact for the change itself, not for taking a feature away: `ablate` does that.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_lens.attribution.between import bound_to, gradients
from vlm_lens.dictionaries.features import (
    Chosen,
    FeatureScores,
    as_scores,
    at_pairs,
    encoded,
    one_row,
    pairs_at,
)
from vlm_lens.dictionaries.value import DictionaryError, DictionaryValue
from vlm_lens.hooked.hooked_model import HookedModel
from vlm_lens.layout.positions import Position
from vlm_lens.measures import LogitMeasure
from vlm_lens.prompts.prompt import Prompt


def attribution(
    dictionary: DictionaryValue,
    vlm: HookedModel,
    prompt: Prompt,
    measure: LogitMeasure,
    at: Position | int | Sequence[int] | None = None,
    features: Chosen = None,
) -> FeatureScores:
    """See `Dictionary.attribution`."""
    one_row(prompt)
    point, out = dictionary.point_on(vlm), dictionary.point_on(vlm, out=True)
    pairs = pairs_at(prompt, point, at)
    bound = bound_to(vlm, prompt, measure)
    slopes, read, _ = gradients(vlm, prompt, [point.name, out.name], bound)
    gradient = slopes[out.name]
    if not gradient.any():
        raise DictionaryError(f"The measure does not hang on {out.name} in this run.")
    values, chosen = encoded(dictionary, at_pairs(read[point.name], pairs), features)
    slope = (
        at_pairs(gradient, pairs).float() @ dictionary.coder_on(gradient).w_dec[chosen].T.float()
    )
    scores = values * slope.cpu()
    name = f"activation x gradient of {type(measure).__name__}"
    return as_scores(dictionary, vlm, prompt, out, pairs, scores, chosen, name=name)


__all__ = ["attribution"]
