"""Embedding lens, bank and LatentLens against brute force in plain torch."""

from __future__ import annotations

import copy

import pytest
import tiny
import torch

from vlm_lens import HookedVLM, Images
from vlm_lens.errors import VLMLensError
from vlm_lens.lenses import Bank, EmbeddingLens, LatentLens, LensError, in_contexts
from vlm_lens.storage.files import FileError
from vlm_lens.tokens import string_tokens

TEXTS = [
    "What is the capital of Greece", "What is the colour of the fruit",  # the same five at first
    "Q:Greece\nA:Athens\n\nQ:Peru\nA:Lima", "Q:Greece\nA:Athens", "The red, green or yellow fruit",
]  # fmt: skip
POINTS = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def bank(load, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank") / "bank"
    return Bank.build(
        load("clip-llama"), TEXTS, folder, dtype=torch.float32, shard=7, batch_size=2,
        progress=False,
    )  # fmt: skip


@pytest.fixture
def asked(clip, picture):
    return clip.prompt("Q:<image>\nA:", [picture])


@torch.no_grad()
def entries(clip, texts=TEXTS, skip=2):
    """(token, prefix) -> states at both blocks, from plain runs of one text each."""
    found = {}
    for text in texts:
        inputs = clip.prompt(text).inputs
        ids = inputs["input_ids"][0].tolist()
        read = tiny.plain_read(clip.hf_model, inputs, POINTS)
        for i in range(skip, len(ids)):
            found[ids[i], tuple(ids[: i + 1])] = torch.stack([read[p][0, i] for p in POINTS])
    return found


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1)


def test_the_embedding_lens_is_the_cosine_with_every_embedding(clip, asked):
    seen = EmbeddingLens(k=4, tokens=(9,)).run(clip, asked)
    table = clip.hf_model.get_input_embeddings().weight.detach()
    row = seen.rows[0]
    read = tiny.plain_read(clip.hf_model, asked.inputs, POINTS)
    for layer, point in enumerate(POINTS):
        for i, position in enumerate(row.positions):
            exact = cosine(read[point][0, position], table)
            top = exact.topk(4)
            torch.testing.assert_close(
                row.top_probs[layer, i].double(), top.values, rtol=1e-5, atol=1e-6
            )
            assert row.top_ids[layer, i].tolist() == top.indices.tolist()
            assert float(row.token_probs[layer, i, 0]) == pytest.approx(float(exact[9]), abs=1e-6)
            assert int(row.token_ranks[layer, i, 0]) == int((exact > exact[9]).sum())
    assert row.entropy is None and seen.measure == "cosine similarity"


def test_the_bank_has_each_prefix_once(clip, bank):
    exact = entries(clip)
    assert len(bank) == len(exact) < sum(len(clip.prompt(t).layout) - 2 for t in TEXTS)
    assert bank.tokens.tolist() == sorted({token for token, _ in exact})
    assert len(list(bank.folder.glob("entries-*"))) > 2
    for entry in range(len(bank)):
        text, position = bank.context(entry)
        assert position >= 2 and text in TEXTS


def test_latent_lens_is_the_best_over_contexts_and_layers(clip, bank, asked):
    exact = entries(clip)
    tokens = sorted({token for token, _ in exact})
    chosen = tokens[5]
    seen = LatentLens(bank=bank, k=3, tokens=(chosen,), at=Images()).run(clip, asked)
    row = seen.rows[0]
    read = tiny.plain_read(clip.hf_model, asked.inputs, POINTS)
    layers = set()
    for layer, point in enumerate(POINTS):
        for i, position in enumerate(row.positions):
            state = read[point][0, position]
            best = {}
            for (token, prefix), values in exact.items():
                for number, value in enumerate(cosine(state, values).tolist()):
                    best[token] = max(best.get(token, (-2,)), (value, prefix, number))
            order = sorted(tokens, key=lambda t: -best[t][0])[:3]
            assert row.top_ids[layer, i].tolist() == order
            values = [best[t][0] for t in order]
            assert row.top_probs[layer, i].tolist() == pytest.approx(values, abs=1e-6)
            assert float(row.token_probs[layer, i, 0]) == pytest.approx(best[chosen][0], abs=1e-6)
            _, prefix, number = best[order[0]]
            layers.add(number)
            source = seen.sources[int(row.sources[layer, i, 0])]
            assert source.endswith(f" at block {number}")
            word = string_tokens(clip.tokenizer, prefix)[-1].replace("\n", "⏎")
            assert source.endswith(f"{word} at block {number}")
    assert layers == {0, 1}  # of the bank, whatever the state's own layer is
    assert "source" in seen.to_dataframe()
    assert "cosine similarity" in str(seen.plot_image().layout)


def test_a_token_has_so_many_contexts_at_the_most(clip, tmp_path):
    bank = Bank.build(clip, TEXTS, tmp_path / "b", per_token=1, progress=False)
    assert len(bank) == len(bank.tokens) == len({token for token, _ in entries(clip)})


def test_a_killed_build_goes_on_and_ends_the_same(clip, bank, tmp_path, monkeypatch, asked):
    run, calls = HookedVLM.run_with_cache, []

    def dies(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *args, **kwargs)

    options = {"dtype": torch.float32, "shard": 7, "batch_size": 2, "progress": False}
    with monkeypatch.context() as patched:
        patched.setattr(HookedVLM, "run_with_cache", dies)
        with pytest.raises(KeyboardInterrupt):
            Bank.build(clip, TEXTS, tmp_path / "b", **options)
    again = Bank.build(clip, TEXTS, tmp_path / "b", **options)
    _, cache = clip.run_with_cache(asked, names_filter=POINTS[0])
    mine, theirs = (b.search(cache[POINTS[0]][0]) for b in (again, bank))
    assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1], theirs[1])
    with pytest.raises(LensError, match="another texts"):
        Bank.build(clip, TEXTS[:2], tmp_path / "b", **options)


def test_half_precision_on_disk_costs_little(clip, bank, tmp_path, asked):
    small = Bank.build(clip, TEXTS, tmp_path / "b", progress=False)
    a, b = (LatentLens(bank=one, k=1).run(clip, asked).rows[0].top_probs for one in (bank, small))
    assert (a - b).abs().max() < 1e-3


def test_what_cannot_be_is_refused(clip, bank, asked, tmp_path, load):
    with pytest.raises(LensError, match="no entry of"):
        LatentLens(bank=bank, tokens=(0,)).run(clip, asked)
    with pytest.raises(LensError, match="bank was read on"):
        LatentLens(bank=bank).run(load("siglip-mistral"), "Q:Greece\nA:")
    wide = tiny.build("llama", hidden_size=64)
    with pytest.raises(LensError, match="of width 32"):
        LatentLens(bank=bank).run(HookedVLM(wide, load("llama").processor), "Q:Greece\nA:")
    for texts, message in (
        ([], "at least one text"), ("Q:Greece", "list of texts"), (["<image>"], "has a picture"),
        ([""], "No text has a token"),
    ):  # fmt: skip
        with pytest.raises(LensError, match=message):
            Bank.build(clip, texts, tmp_path / message[:4], progress=False)
    with pytest.raises((FileError, VLMLensError)):
        Bank(tmp_path / "nowhere")
    with pytest.raises(LensError, match="a Bank or its folder, not list"):
        LatentLens(bank=["red"])
    assert LatentLens(bank=str(bank.folder)) == LatentLens(bank=bank)


def test_words_stand_in_contexts():
    assert in_contexts(["cat"], ["a {}", "the {} "]) == ["a cat", "the cat "]


def test_a_lens_does_not_move_with_the_length_of_a_state(clip, asked):
    """Both sides are of length 1: a scaled state has the same neighbours."""
    twin = HookedVLM(copy.deepcopy(clip.hf_model), clip.processor)
    with torch.no_grad():
        twin.hf_model.get_input_embeddings().weight.mul_(3)
    from vlm_lens.lenses.embedding_lens import cosines

    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cosines(clip, states), cosines(twin, 5 * states))
