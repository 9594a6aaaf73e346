"""The prefix rule, the strict rule, the baseline of a guess and the interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlm_lens.recipes.parts.scoring import (
    accuracy,
    answer_token,
    balanced,
    bootstrap,
    over_seeds,
    prefix_match,
    score,
)
from vlm_lens.tasks import Task


@pytest.mark.parametrize(
    ("said", "answers", "right"),
    [
        ("Par", "Paris", True),
        ("Paris", "Par", True),
        (" Paris\n", "Paris ", True),
        ("A", "Athens", True),
        ("", "Paris", False),
        ("  ", "Paris", False),
        ("Paris", " ", False),
        ("paris", "Paris", False),
        ("aris", "Paris", False),
        ("kid", ("pup", "kid"), True),
        ("kid", ("pup", "cub"), False),
        ("kid", (), False),
    ],
)
def test_prefix_rule(said, answers, right):
    assert prefix_match(said, answers) is right


def test_case_may_be_ignored():
    assert prefix_match("PAR", "paris", ignore_case=True)


def test_strict_wants_the_first_token(toy):
    colon, paris = toy.to_single_token(":"), toy.to_single_token("Paris")
    scores = score(toy, torch.tensor([paris, colon]), [("Paris",), ("Paris",)])
    assert list(scores.predictions) == ["Paris", ":"]
    assert scores.correct.tolist() == [True, False] == scores.strict.tolist()


def test_a_prefix_that_is_not_the_first_token_is_right_but_not_strict(toy):
    short = next(
        i for i in range(toy.cfg.d_vocab)
        if len(t := toy.tokenizer.decode([i]).strip()) == 1 and t.isalpha()
    )  # fmt: skip
    letter = toy.tokenizer.decode([short]).strip()
    scores = score(toy, torch.tensor([short]), [(f"{letter}{letter}zz",)])
    assert scores.correct.tolist() == [True]
    longer = toy.tokenizer.decode([toy.to_single_token("Paris")])
    assert score(toy, torch.tensor([toy.to_single_token("Paris")]), [(longer + "ian",)]).correct[0]


def test_an_answers_first_token_is_the_one_after_the_delimiter(model):
    before = model.tokenizer("Q:Greece\nA:")["input_ids"]
    whole = model.tokenizer("Q:Greece\nA:Athens")["input_ids"]
    assert whole[: len(before)] == before
    assert answer_token(model, "Athens") == whole[len(before)]


def test_several_runs_are_scored_at_once(toy):
    token = toy.to_single_token("Paris")
    scores = score(toy, torch.tensor([[token, token], [6, token]]), [("Paris",), ("Rome",)])
    assert scores.correct.shape == (2, 2)
    assert scores[0].correct.tolist() == [True, False]


def test_special_tokens_are_never_right(toy):
    eos = toy.tokenizer.eos_token_id
    assert not score(toy, torch.tensor([eos]), [("</s>",)]).correct[0]


def test_bootstrap_bounds_the_mean_and_repeats():
    generator = np.random.default_rng(3)
    tasks = [generator.random(200) < 0.3, generator.random(50) < 0.7]
    low, high = bootstrap(tasks)
    mean = np.mean([t.mean() for t in tasks])
    assert low < mean < high and high - low < 0.2
    assert (low, high) == bootstrap(tasks)
    assert bootstrap([np.ones(9)]) == (1.0, 1.0)
    assert np.isnan(bootstrap([np.ones(9), np.ones(1)])).all()


def test_bootstrap_of_one_task_is_near_the_binomial_interval():
    right = np.array([1.0] * 30 + [0.0] * 70)
    low, high = bootstrap([right], resamples=20000)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 100)
    assert low == pytest.approx(0.3 - half, abs=0.015)
    assert high == pytest.approx(0.3 + half, abs=0.015)


def test_intervals_of_few_queries_hold_the_mean_as_often_as_they_say():
    draw = np.random.default_rng(5)
    for tasks, n in ((1, 8), (3, 5)):  # 0.89 and 0.88 as plain percentiles
        held = 0
        for seed in range(300):
            low, high = bootstrap(list(draw.normal(1, 1, (tasks, n))), resamples=400, seed=seed)
            held += low <= 1 <= high
        assert 0.905 < held / 300 < 0.98


def test_balanced_accuracy_gives_each_label_the_same_weight():
    assert balanced([True, True, True, False], ["a", "a", "a", "b"]) == 0.5
    assert balanced([True, False, False], ["a", "b", "b"]) == 0.5


def test_interval_over_seeds():
    # the table of Student's t: 4.303 for two degrees of freedom
    low, high = over_seeds([0.4, 0.5, 0.6])
    assert (low, high) == pytest.approx((0.5 - 4.3027 * 0.1 / 3**0.5, 0.5 + 4.3027 * 0.1 / 3**0.5),
                                        abs=1e-4)  # fmt: skip
    assert np.isnan(over_seeds([0.4])).all()
    assert over_seeds([0.0, 1.0]) == (0.0, 1.0)


def test_accuracy_equals_greedy_generation_of_one_token(toy):
    task = Task.load("food-color")
    rows = task.test[:5]
    prompts = [task.query(row, "image") for row in rows]
    said = [toy.generate(p, max_new_tokens=1).text[0] for p in prompts]
    expected = np.mean([prefix_match(s, r.answers) for s, r in zip(said, rows, strict=True)])
    assert accuracy(toy, prompts, [r.answers for r in rows], batch_size=2) == expected
