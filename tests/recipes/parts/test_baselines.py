"""What one token, said to every query, gets: found and judged by trying every token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vlm_lens.recipes import CrossModalPatch
from vlm_lens.recipes.parts.baselines import best_token, majority_token
from vlm_lens.tasks import Task
from vlm_lens.tasks.rows import Row
from vlm_lens.terms import BEST_TOKEN, MAJORITY


def right(text, answers):
    text = text.strip()
    return any(bool(text) and (text.startswith(a) or a.startswith(text)) for a in answers)


@pytest.mark.parametrize("name", ["country-capital", "animal-young"])
def test_the_best_token_is_the_best_of_all(toy, name):
    task, tokenizer = Task.load(name), toy.tokenizer
    share = [
        np.mean([right(tokenizer.decode([i], skip_special_tokens=True), r.answers)
                 for r in task.validation])
        for i in range(len(tokenizer))
    ]  # fmt: skip
    assert best_token(toy, task) == int(np.argmax(share)) and max(share) > 0


def test_case_is_ignored_where_asked(toy):
    labels = ("Paz", "pas", "PAx", "pox", "kix", "kiz", "kim")
    task = Task("letters", "Do:", tuple(Row(str(i), one) for i, one in enumerate(labels)), ())
    exact, loose = (best_token(toy, task, ignore_case=ignore) for ignore in (False, True))
    texts = [toy.tokenizer.decode([token]).strip() for token in (exact, loose)]
    assert "kiz".startswith(texts[0]) and texts[1].lower() == "p"


def test_both_are_judged_by_the_rule_of_the_methods(toy):
    task = Task.load("country-capital")
    task = replace(task, validation=task.validation[:8], test=task.test[:30])
    result = CrossModalPatch(tasks=task, seeds=1, layer=4, controls=False).run(toy, progress=False)
    for method, token in (
        (MAJORITY, majority_token(toy, task)),
        (BEST_TOKEN, best_token(toy, task)),
    ):
        text = toy.tokenizer.decode([token], skip_special_tokens=True)
        expected = np.mean([right(text, row.answers) for row in task.test])
        assert result.accuracy(method) == pytest.approx(expected)
        said = result.predictions[result.predictions["method"] == method]
        assert set(said["prediction"]) == {text} and set(said["seed"]) == {0}
