"""Published checkpoints under short names, without a network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny
import transformers
from families import tiny_idefics2

from vlm_lens import HookedVLM, zoo
from vlm_lens.errors import ModelError
from vlm_lens.model import checkpoints
from vlm_lens.model.checkpoints import CHECKPOINTS, find

LOADERS = ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoProcessor",
           "AutoTokenizer")  # fmt: skip


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with a tiny Idefics2 and a tiny Llama; `hub` lists what it was asked for."""
    cut = tiny_idefics2.save(tmp_path / "idefics2", split=True)
    text = tiny.save("llama", tmp_path / "llama")
    folders = {
        "HuggingFaceM4/idefics2-8b": cut,
        "lmsys/vicuna-7b-v1.5": text,
        "mistralai/Mistral-7B-v0.1": text,
    }
    asked = []

    def instead_of(loader):
        own = getattr(transformers, loader).from_pretrained

        def from_pretrained(name, *args, **options):
            if not isinstance(name, Path):  # not transformers' own call for one of these folders
                asked.append((loader, name, options.pop("revision", None)))
            return own(folders.get(name, name), *args, **options)

        monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", from_pretrained)

    for loader in LOADERS:
        instead_of(loader)
    return asked


def test_the_records():
    assert list(CHECKPOINTS) == checkpoints.names()
    for name, one in CHECKPOINTS.items():
        assert one.name == name and "/" in one.repo and "/" not in name
        assert re.fullmatch("[0-9a-f]{40}", one.revision)
        assert one.takes_images == (one.patch_layer is not None)
        assert one.patch_layer is None or 0 <= one.patch_layer < one.n_layers
        assert find(name) is one and find(one.repo) is one
        if one.base_lm is not None:
            base = CHECKPOINTS[one.base_lm]
            assert base.n_layers == one.n_layers and not base.takes_images
    assert not CHECKPOINTS.keys() & set(zoo.names())
    assert find("toy-llava") is None
    assert {n: c.patch_layer for n, c in CHECKPOINTS.items() if c.takes_images} == {
        "llava-1.5-7b": 15,
        "idefics2-8b": 16,
        "mantis-8b-fuyu": 23,
    }


def test_records_do_not_change():
    with pytest.raises(TypeError):
        CHECKPOINTS["idefics2-8b"].settings["image_processor.do_image_splitting"] = True
    with pytest.raises(TypeError):
        CHECKPOINTS["mine"] = CHECKPOINTS["idefics2-8b"]
    assert len({*CHECKPOINTS.values()}) == len(CHECKPOINTS)


def test_a_short_name_is_id_revision_and_settings(hub):
    vlm = HookedVLM.from_pretrained("idefics2-8b")
    record = CHECKPOINTS["idefics2-8b"]
    assert {loader for loader, *_ in hub} >= {"AutoConfig", "AutoModelForImageTextToText"}
    assert {(name, revision) for _, name, revision in hub} == {(record.repo, record.revision)}
    assert vlm.name == "idefics2-8b"
    assert vlm.processor.image_processor.do_image_splitting is False
    prompt = vlm.prompt("<image>", [tiny.noise_picture(0, (30, 24))])
    assert len(prompt.inputs["pixel_values"][0]) == 1  # not cut


def test_a_hub_id_is_left_as_it_is(hub):
    vlm = HookedVLM.from_pretrained("HuggingFaceM4/idefics2-8b")
    assert {revision for _, _, revision in hub} == {None}
    assert vlm.processor.image_processor.do_image_splitting is True


def test_what_the_user_says_comes_first(hub):
    own = tiny_idefics2.processor(split=True)
    vlm = HookedVLM.from_pretrained("idefics2-8b", revision="main", processor=own)
    assert {revision for _, _, revision in hub} == {"main"}
    assert vlm.processor is own and own.image_processor.do_image_splitting is True


def test_a_language_model(hub):
    vlm = HookedVLM.from_pretrained("vicuna-7b-v1.5")
    assert not vlm.family.takes_images
    assert {name for _, name, _ in hub} == {"lmsys/vicuna-7b-v1.5"}
    assert {revision for _, _, revision in hub} == {CHECKPOINTS["vicuna-7b-v1.5"].revision}


def test_a_setting_that_is_not_there_is_an_error(load):
    with pytest.raises(AttributeError, match="do_image_splitting"):
        checkpoints.apply_settings(CHECKPOINTS["idefics2-8b"], load("clip-llama").processor)


def test_folders_and_zoo_come_first(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save("llama", tmp_path / "idefics2-8b")
    vlm = HookedVLM.from_pretrained("idefics2-8b")
    assert not vlm.family.takes_images
    assert {(name, revision) for _, name, revision in hub} == {("idefics2-8b", None)}
    (tmp_path / "toy-llava").mkdir()
    assert HookedVLM.from_pretrained("toy-llava").family.takes_images


@pytest.mark.parametrize(
    ("name", "near"),
    [("toy-lava", "'toy-llava'"), ("idefics-8b", "'idefics2-8b'"), ("llava-1.5", "'llava-1.5-7b'")],
)
def test_a_name_that_nothing_has_is_refused_at_once(hub, name, near):
    with pytest.raises(ModelError, match=f"is not a zoo model.* Did you mean .*{near}"):
        HookedVLM.from_pretrained(name)
    assert hub == []


def test_a_name_that_is_near_nothing(hub):
    with pytest.raises(ModelError, match="has a '/'") as error:
        HookedVLM.from_pretrained("zzzz")
    assert "Did you mean" not in str(error.value) and hub == []


def test_base_and_unrelated_models_are_known_and_fit():
    assert checkpoints.base_of("HuggingFaceM4/idefics2-8b") == "mistral-7b-v0.1"
    assert checkpoints.base_of("toy-induction") is checkpoints.unrelated_of("idefics2-8b") is None
    sizes = {}
    for name in zoo.names():
        config = transformers.AutoConfig.from_pretrained(zoo.path(name)).get_text_config()
        sizes[name] = config.hidden_size, config.num_hidden_layers
    for name in ("toy-llava", "toy-idefics2", "toy-fuyu"):
        base, other = checkpoints.base_of(name), checkpoints.unrelated_of(name)
        assert base != other and sizes[base] == sizes[other] == sizes[name]
    assert checkpoints.base_of("toy-fuyu") == "toy-persimmon"
