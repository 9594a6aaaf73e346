"""Scaling, clamping and subspaces, in runs, sweeps, batches and generation, by plain hooks."""

from __future__ import annotations

import pytest
import tiny
import torch

from vlm_lens import (
    All,
    At,
    Clamp,
    Generated,
    Images,
    Last,
    Project,
    Remove,
    Scale,
    Steer,
    TaskVector,
    Text,
)
from vlm_lens.errors import InterventionError, PositionError
from vlm_lens.interventions import Intervention

P = "blocks.0.hook_resid_post"
Z = "blocks.0.attn.hook_z"
TEXTS = ["Q:<image>\nA:red", "Q:Peru\nA:"]


def directions(n: int, width: int = 32):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def onto(x, basis):
    """The nearest point of a subspace, by least squares."""
    solution = torch.linalg.lstsq(basis.double().T, x.double().reshape(-1, x.shape[-1]).T).solution
    return (basis.double().T @ solution).T.reshape(x.shape).to(x)


CASES = [
    (lambda at: Scale(P, at, 2.5), lambda x: x * 2.5),
    (lambda at: Scale(P, at, directions(1)[0]), lambda x: x * directions(1)[0]),
    (lambda at: Clamp(P, at, low=-0.2, high=0.3), lambda x: x.clamp(-0.2, 0.3)),
    (lambda at: Clamp(P, at, high=0), lambda x: x.clamp(max=0)),
    (lambda at: Remove(P, at, directions(1)[0]), lambda x: x - onto(x, directions(1))),
    (lambda at: Remove(P, at, directions(3)), lambda x: x - onto(x, directions(3))),
    (lambda at: Project(P, at, directions(3)), lambda x: onto(x, directions(3))),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_in_a_padded_batch(clip, number):
    make, change = CASES[number]
    batch = clip.prompt(TEXTS, [tiny.noise_picture()])
    for at in (Last(), All(), ~Last(), Text() - At((-1,))):
        pairs = [p for layout in batch.layouts for p in at.resolve(layout)]
        rows, positions = torch.tensor(pairs).T

        def write(x, rows=rows, positions=positions):
            x = x.clone()
            x[rows, positions] = change(x[rows, positions])
            return x

        expected = tiny.plain_write(clip.hf_model, batch.inputs, P, write)
        edit = make(at)
        found = clip.run(batch, interventions=edit)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        swept = clip.sweep(
            batch, [edit, make(Last()), CASES[0][0](Last()), edit], measure="logits", progress=False
        )
        assert swept.engines == {"replay": 4}
        rows_found = swept.stack("logits").reshape(4, 2, -1)
        for variant in (0, 3):
            torch.testing.assert_close(rows_found[variant], found[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_at_every_new_token(clip, number):
    make, change = CASES[number]
    prompt = clip.prompt(TEXTS[0], [tiny.noise_picture()])
    at = Last() + Generated()
    options = {"max_new_tokens": 4, "eos_token_id": None, "interventions": make(at)}
    found = clip.generate(prompt, **options).tokens
    assert torch.equal(clip.generate(prompt, use_cache=False, **options).tokens, found)
    inputs, first = dict(prompt.inputs), prompt.length - 1
    for step in range(4):
        logits = tiny.plain_write(
            clip.hf_model, inputs, P, lambda x: torch.cat([x[:, :first], change(x[:, first:])], 1)
        )
        token = logits[:, -1].argmax(-1, keepdim=True)
        assert torch.equal(token[:, 0], found[:, step])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(token)], 1)


def test_at_heads_and_in_the_tower(clip):
    prompt = clip.prompt(TEXTS[0], [tiny.noise_picture()])

    def write(x):
        x = x.clone().unflatten(-1, (4, 8))
        x[:, -1, [1, 3]] = x[:, -1, [1, 3]] - onto(x[:, -1, [1, 3]], directions(2, 8))
        return x.flatten(2)

    expected = tiny.plain_write(clip.hf_model, prompt.inputs, Z, write)
    edit = Remove(Z, Last(), directions(2, 8), heads=(1, 3))
    torch.testing.assert_close(clip.run(prompt, interventions=edit), expected)
    name = "vision.blocks.0.hook_mlp_out"
    expected = tiny.plain_write(clip.hf_model, prompt.inputs, name, lambda x: x * 0.5)
    found = clip.run(prompt, interventions=Scale(name, Images(), 0.5))
    torch.testing.assert_close(found, expected)


def test_each_layer_its_own_direction(clip):
    vector = TaskVector.read(clip, ["Q:Peru\nA:", "Q:Greece\nA:"], at=Last())
    edit = Remove("blocks.*.hook_resid_post", Last(), vector)
    found = clip.run_with_cache("Q:Japan\nA:", interventions=edit)[1]
    for layer in range(clip.cfg.n_layers):
        along = found["resid_post", layer][0, -1] @ vector.layer(layer) / vector.layer(layer).norm()
        assert abs(float(along)) < 1e-4
    assert Remove(P, Last(), directions(3)) == Remove(P, Last(), directions(3))


@pytest.mark.parametrize("number", range(len(CASES)))
def test_files(tmp_path, number):
    edit = CASES[number][0](Last() + Generated())
    edit.save(tmp_path / "edit")
    assert Intervention.load(tmp_path / "edit") == edit


def test_a_learned_factor_gets_its_gradient(clip):
    factor = torch.nn.Parameter(torch.ones(()))
    clip.run("Q:Peru", interventions=Scale(P, Last(), factor), grad=True)[0, -1, 3].backward()
    assert factor.grad.abs() > 0


def test_positions_add_and_leave_out(clip):
    layout = clip.prompt(TEXTS[0], [tiny.noise_picture()]).layout
    both = Last() + Images() + Last()
    assert both.resolve(layout) == Last().resolve(layout) + Images().resolve(layout)
    everything = {p for _, p in All().resolve(layout)}
    pictures = {p for _, p in Images().resolve(layout)}
    assert {p for _, p in (~Images()).resolve(layout)} == everything - pictures
    assert repr(Last() + Generated()) == "Last() + Generated()"
    assert repr(~(Last() + Images())) == "~(Last() + Images(image=None))"
    assert Images().resolve(layout, "vision") == (All() - At(())).resolve(layout, "vision")
    with pytest.raises(PositionError, match="no part of a prompt"):
        _ = ~Generated()
    with pytest.raises(InterventionError, match="holds no position"):
        clip.run("Q:", interventions=Steer(P, ~All(), 1.0))


def test_what_is_refused(clip, no_forward):
    no_forward(clip)
    with pytest.raises(InterventionError, match="low <= high"):
        Clamp(P, Last(), low=1, high=0)
    with pytest.raises(InterventionError, match="low=, high= or both"):
        Clamp(P, Last())
    with pytest.raises(InterventionError, match="low <= high"):
        Clamp(P, Last(), low=float("nan"))
    for made, says in (
        (Remove(P, Last(), torch.zeros(32)), "directions are zero"),
        (Project(P, Last(), torch.zeros(31)), r"takes \[32\], or \[directions, 32\]"),
    ):
        with pytest.raises(InterventionError, match=says):
            clip.run("Q:Peru", interventions=made)
