"""Constructors of everything that a user makes answer a wrong argument in words."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import dataclass, replace
from importlib import import_module

import pytest

from vlm_lens import Find, HookedVLM, Pair, Steer
from vlm_lens.errors import KeywordError, VLMLensError
from vlm_lens.interventions import Intervention
from vlm_lens.keywords import Answering, answering
from vlm_lens.measures import Prob
from vlm_lens.recipes import CrossModalPatch, Recipe
from vlm_lens.tasks import Task

ROOMS = ("", ".recipes", ".lenses", ".dictionaries", ".measures", ".directions", ".pairs", ".tasks",
         ".probes", ".attribution")  # fmt: skip
CLASSES = {
    thing
    for room in ROOMS
    for name in getattr(import_module(f"vlm_lens{room}"), "__all__", ())
    if inspect.isclass(thing := getattr(import_module(f"vlm_lens{room}"), name))
    and issubclass(thing, Answering)
}


def test_classes_that_users_make_answer():
    assert len(CLASSES) > 90
    assert {HookedVLM, Pair, Find, Steer, Prob, CrossModalPatch} <= CLASSES


@pytest.mark.parametrize("cls", sorted(CLASSES, key=lambda c: c.__qualname__))
def test_an_unknown_keyword_is_answered(cls):
    if inspect.isabstract(cls) or cls.__init__ is object.__init__:
        return
    with pytest.raises(VLMLensError, match=f"{cls.__name__} takes no zzz=.*It takes"):
        cls(zzz=1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: CrossModalPatch("country-capital", sorce="text"), "Did you mean 'source'"),
        (lambda: Find(), "missing a required argument: 'token'"),
        (lambda: Steer("hook_embed", Find("a"), vectr=1), "Did you mean 'vector'"),
        (lambda: Find(":", m=-1), "It takes token, n"),
        (lambda: Prob("a", "b", "c", 4), "too many positional"),
        (lambda: Task.from_csv("t.csv"), "Task.from_csv got other .*'instruction'"),
        (lambda: HookedVLM(), "missing a required argument: 'hf_model'"),
    ],
)
def test_what_is_meant_is_named(make, told):
    with pytest.raises(KeywordError, match=told) as said:
        make()
    assert isinstance(said.value, TypeError)


def test_values_are_as_before():
    find = Find(":", n=-2)
    assert replace(find, n=0) == Find(":", 0)
    assert copy.copy(find) == copy.deepcopy(find) == pickle.loads(pickle.dumps(find)) == find
    assert list(inspect.signature(Find).parameters) == ["token", "n"]
    recipe = CrossModalPatch("country-capital")
    assert copy.copy(recipe) == recipe and replace(recipe, seeds=2).seeds == 2


def test_what_a_constructor_raises_itself_is_left():
    @dataclass(frozen=True)
    class Failing(Answering):
        number: int = 0

        def __post_init__(self):
            raise TypeError("mine")

    with pytest.raises(TypeError, match="^mine$"):
        Failing(3)
    for abstract in (Recipe, Intervention):
        with pytest.raises(TypeError):
            abstract()


def test_functions_answer_as_classes_do():
    @answering
    def read(vlm, at=None, *, k=1):
        return [k + 1, vlm.hf_model]

    class Model:
        hf_model = "m"

    assert read(Model(), k=2) == [3, "m"]
    with pytest.raises(KeywordError, match="read takes no kk=. Did you mean 'k'"):
        read(Model(), kk=2)
    with pytest.raises(KeywordError, match=r"from_pretrained\(name\), not 'toy'"):
        read("toy")
    with pytest.raises(TypeError, match="unsupported operand|can only concatenate"):
        read(Model(), k="a")
    with pytest.raises(AttributeError):
        read(None)
    assert list(inspect.signature(read).parameters) == ["vlm", "at", "k"]
