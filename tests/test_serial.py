"""Values on disk: JSON and safetensors, nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lens import (
    Ablate,
    ActivationPatch,
    All,
    At,
    Find,
    Generated,
    Images,
    Intervention,
    Last,
    Patches,
    Span,
    Steer,
    TaskVector,
    Text,
    VectorEnsemble,
)
from vlm_lens.errors import VLMLensError
from vlm_lens.interventions import Composed, ModelFacts
from vlm_lens.serial import FrozenTensor, load, pack, save, unpack

P = "blocks.1.hook_resid_post"
POSITIONS = [
    Last(), Find(":", -3), Find(7, 0), Span("a b"), Span("a", 1), At((1, -2)), Patches(),
    Patches(1, rows=(0, 2), cols=3), Patches(box=(0.5, 1.0, 2.0, 3.0)), Images(), Images(1),
    Text(), Text(special=True), All(), Generated(),
]  # fmt: skip


def vector(seed: int = 0, **changes) -> TaskVector:
    values = torch.randn(2, 32, generator=torch.Generator().manual_seed(seed))
    options = {"kind": "resid_post", "source": ModelFacts("m", 2, 32, "abc"), "at": Last()}
    return TaskVector(FrozenTensor(values), **(options | changes))


def values():
    yield Ablate(P, at=Last())
    yield Ablate([P, "hook_merged"], at=All(), by="mean")
    yield Ablate("blocks.*.attn.hook_z", at=Last(), by=torch.randn(4, 8), heads=[0, 2])
    yield Steer(P, at=Generated(), vector=torch.randn(32), scale=-2)
    yield ActivationPatch(P, at=Find(":", -1), value=2)
    yield ActivationPatch(P, at=Last(), value=vector(), allow_transfer=True)
    yield ActivationPatch(P, at=Last(), value=VectorEnsemble([vector(), vector(1)], weights=(1, 2)))
    nested = VectorEnsemble([vector(), VectorEnsemble([vector(1), vector(1)])])
    yield Steer("blocks.*.hook_resid_post", at=Last(), vector=nested)
    yield Ablate(P, at=Last()) + Steer(P, at=All(), vector=1.0) + Ablate("hook_merged", at=At(0))
    same = vector()
    yield ActivationPatch(P, at=Last(), value=same) + ActivationPatch("blocks.0.*post", 0, same)


@pytest.mark.parametrize("value", values(), ids=lambda v: type(v).__name__)
def test_interventions_come_back_as_they_were(value, tmp_path):
    path = value.save(tmp_path / "edit.v1")
    assert path == tmp_path / "edit.v1.json"
    assert {p.suffix for p in tmp_path.iterdir()} <= {".json", ".safetensors"}
    json.loads(path.read_text())
    for kind in (type(value), Intervention):
        back = kind.load(tmp_path / "edit.v1")
        assert back == value
        assert hash(back) == hash(value)
        assert repr(back) == repr(value)
    assert type(value).load(path) == value


@pytest.mark.parametrize("at", POSITIONS, ids=repr)
def test_positions_come_back(at, tmp_path):
    edit = Ablate(P, at=at)
    edit.save(tmp_path / "e")
    assert Ablate.load(tmp_path / "e") == edit
    assert hash(Ablate.load(tmp_path / "e")) == hash(edit)
    assert not (tmp_path / "e.safetensors").exists()


def test_a_cache_slice_comes_back(clip, picture, tmp_path):
    prompt = clip.prompt("Q:<image>\nA:", [picture])
    plain, cache = clip.run_with_cache(prompt, names_filter="*")
    names = ["projector.hook_out", "vision.blocks.0.attn.hook_z"]
    edit = ActivationPatch(names, at=Images(), value=cache)
    edit = edit + ActivationPatch("blocks.*.attn.hook_pattern", at=Last(), value=cache)
    edit.save(tmp_path / "e")
    back = Composed.load(tmp_path / "e")
    assert back == edit
    assert torch.equal(clip.run(prompt, interventions=back), plain)
    other = clip.prompt("Q:<image>\nA:", [picture.rotate(90)])
    assert torch.equal(clip.run(other, interventions=back), clip.run(other, interventions=edit))


def test_saving_without_tensors_removes_old_ones(tmp_path):
    Steer(P, at=Last(), vector=torch.ones(3)).save(tmp_path / "e")
    Ablate(P, at=Last(), by="mean").save(tmp_path / "e")
    assert not (tmp_path / "e.safetensors").exists()
    assert Ablate.load(tmp_path / "e").by == "mean"


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_frozen_tensors(dtype):
    data = torch.tensor([[1, 0], [2, 3]]).to(dtype)
    one, two = FrozenTensor(data), FrozenTensor(data.clone().T.contiguous().T)
    assert one == two
    assert hash(one) == hash(two)
    data[0, 0] = 0
    assert one.data[0, 0] == 1 or dtype == torch.bool
    assert one != FrozenTensor(one.data[:1])
    assert one != FrozenTensor(one.data.float() + 1)
    assert FrozenTensor(torch.tensor(1.0)) == FrozenTensor(torch.tensor(1.0))
    assert FrozenTensor(torch.tensor(1.0)) != FrozenTensor(torch.tensor([1.0]))
    grown = FrozenTensor(torch.ones(2, requires_grad=True))
    assert not grown.data.requires_grad


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(plain)
def test_plain_data_comes_back(value):
    tensors: dict = {}
    assert unpack(json.loads(json.dumps(pack(value, tensors))), tensors) == value


def test_errors(tmp_path):
    with pytest.raises(VLMLensError, match="There is no file"):
        Intervention.load(tmp_path / "nothing")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(VLMLensError, match="is not JSON"):
        Intervention.load(tmp_path / "a")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(VLMLensError, match="not saved by vlm_lens"):
        Intervention.load(tmp_path / "b")
    (tmp_path / "c.json").write_text('{"vlm_lens": 1, "value": {"type": "Wizard"}}')
    with pytest.raises(VLMLensError, match="'Wizard'"):
        Intervention.load(tmp_path / "c")
    Ablate(P, at=Last()).save(tmp_path / "d")
    with pytest.raises(VLMLensError, match="holds a Ablate, not a Steer"):
        Steer.load(tmp_path / "d")
    with pytest.raises(VLMLensError, match="cannot be saved"):
        pack(object(), {})
    save(Last(), tmp_path / "deep" / "e")
    assert load(tmp_path / "deep" / "e", Last) == Last()
