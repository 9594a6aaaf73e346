"""Values for other processes: equal, their storages shared, their buffers not copied."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from vlm_lens import ActivationPatch, At, Find, HookedVLM, Last, Steer, VLMLensError
from vlm_lens.distributed.packed import pack, read_packed, unpack, write_packed
from vlm_lens.distributed.source import sent
from vlm_lens.hooked.identity import run_identity
from vlm_lens.serial import FrozenTensor, LearnedTensor


def test_a_value_comes_back_with_its_tensors_and_what_they_share():
    whole = torch.arange(60_000, dtype=torch.float64).reshape(200, 300)
    value = {
        "view": whole[3:5], "whole": whole, "half": torch.randn(5).bfloat16(),
        "none": torch.empty(0, 3), "function": lambda x: x + whole[0, 1],
        "learned": torch.nn.Parameter(torch.ones(2)),
    }  # fmt: skip
    packed = pack(value, "it")
    assert [b.nbytes for b in packed.buffers] == [whole.nbytes + whole.data_ptr() % 64] and len(
        packed.pickled
    ) < 9000
    found = unpack(packed)
    for name in ("view", "whole", "half", "none", "learned"):
        assert torch.equal(found[name], value[name]) and found[name].dtype == value[name].dtype
    assert found["view"].data_ptr() == found["whole"].data_ptr() + 3 * 300 * 8
    assert found["function"](1) == 2 and found["learned"].requires_grad
    at = packed.buffers[0].ctypes.data + whole.data_ptr() % 64
    assert found["whole"].data_ptr() == at  # where the buffer lies


def test_numbers_lie_at_the_same_place_of_a_cache_line():
    large, small = (torch.zeros(n + 4, dtype=torch.uint8).numpy()[4:] for n in (99_999, 50))
    value = [torch.frombuffer(memoryview(a), dtype=torch.uint8) for a in (large, small)]
    value[0][5:9], value[1][7] = 3, 8
    assert [t.data_ptr() % 64 for t in value] == [4, 4]
    found = unpack(pack(value, "it"))
    for one, other in zip(found, value, strict=True):
        assert torch.equal(one, other) and one.data_ptr() % 64 == 4


def test_a_file_holds_it_and_pages_are_shared_until_written(tmp_path):
    value = [torch.randn(123, 457), torch.randn(321, 99), np.arange(70_000)]
    write_packed(tmp_path, "it", pack(value, "it"))
    one, two = (unpack(read_packed(tmp_path, "it")) for _ in range(2))
    for a, b, c in zip(value, one, two, strict=True):
        assert (a == b).all() and (a == c).all()
    assert one[1].data_ptr() % 64 == 0
    one[0][0, 0] = 7  # private to the process
    assert two[0][0, 0] == value[0][0, 0] != 7


@pytest.mark.parametrize("zoo", ["toy-idefics2", "toy-llava"])
def test_a_model_comes_back_as_it_is(zoo, picture):
    vlm = HookedVLM.from_pretrained(zoo)
    prompt = vlm.prompt("Q:<image>\nA:", [picture])
    vlm.run(prompt)  # transformers puts hooks of its own on towers that it reads in the middle
    hooks = sum(len(m._forward_hooks) for m in vlm.hf_model.modules())
    source, asked = unpack(pack((sent(vlm), prompt), "a model"))
    again = source.make()
    assert not sum(len(m._forward_hooks) for m in again.hf_model.modules())
    assert sum(len(m._forward_hooks) for m in vlm.hf_model.modules()) == hooks
    for one, other in zip(again.hf_model.parameters(), vlm.hf_model.parameters(), strict=True):
        assert one.data_ptr() % 64 == other.data_ptr() % 64  # so that the last bits are the same
    assert torch.equal(again.run(asked), vlm.run(prompt))
    assert run_identity(again, p=asked.inputs) == run_identity(vlm, p=prompt.inputs)


def test_interventions_of_one_vector_carry_it_once():
    vector, other = torch.randn(2, 4096)
    point = "blocks.0.hook_resid_post"
    made = [Steer(point, Last(), vector, 1 + i / 8) for i in range(500)]
    made += [ActivationPatch(point, At(i), vector) + Steer(point, 0, other) for i in range(500)]
    packed = pack(made, "it")
    assert packed.nbytes < 2 * vector.nbytes + 1000 * 160
    found = unpack(packed)
    assert found == made and len({v.vector.data.data_ptr() for v in found[:500]}) == 1
    vector[7] = 0  # what was made before holds what the vector was then
    before, after = unpack(pack([made[0], Steer(point, Last(), vector)], "it"))
    assert before == made[0] != after and after.vector.data[7] == 0


def test_equal_tensors_that_can_change_or_are_of_another_kind_stay_apart():
    ones = torch.ones(3)
    value = [
        ones, ones.clone(), FrozenTensor(ones), FrozenTensor(ones), FrozenTensor(ones.double()),
        FrozenTensor(ones[None]), LearnedTensor(torch.nn.Parameter(ones.clone())), Find("a"),
    ]  # fmt: skip
    found = unpack(pack(value, "it"))
    assert found[2:] == value[2:] and found[2] is found[3]
    held = [x if isinstance(x, torch.Tensor) else x.data for x in found[:3] + found[4:7]]
    assert len({x.data_ptr() for x in held}) == 6 and held[5].requires_grad
    assert [x.dtype for x in held] == [torch.float32] * 3 + [torch.float64] + [torch.float32] * 2


def test_what_cannot_be_sent_is_said():
    lock = threading.Lock()
    with pytest.raises(VLMLensError, match="The work cannot be sent .*lock"):
        pack(lambda: lock, "The work")
