"""Which position is which, on real tokenizers of both kinds."""

from __future__ import annotations

import pytest
import tiny

from vlm_lens.errors import PositionError
from vlm_lens.layout.geometry import as_ranges
from vlm_lens.layout.layout import Layout

TEXT = "Q:Greece\nA:Athens\n\nQ:<image>\nA:red is the colour\n\nQ:Peru\nA:"


@pytest.fixture
def layout(vlm):
    return vlm.prompt(TEXT, [tiny.noise_picture()]).layout


def without_image(layout: Layout) -> str:
    return "".join(s for s, k in zip(layout.strings, layout.kinds, strict=True) if k == "text")


def test_find_is_the_token_that_holds_the_last_character(layout):
    text = without_image(layout)
    for needle in (":", "Greece", "A:", "Q:", "colour", "\n\nQ", "ens\n"):
        count = text.count(needle)
        assert count
        assert len(layout.find_all(needle)) == count
        for n in range(-count, count):
            position = layout.find(needle, n)
            assert needle[-1] in layout.strings[position]
            before = "".join(
                s for s, k in list(zip(layout.strings, layout.kinds, strict=True))[: position + 1]
                if k == "text"
            )  # fmt: skip
            assert before.count(needle) >= n % count + 1
        assert layout.find(needle) == layout.find(needle, count - 1)


def test_find_of_the_papers_delimiter_and_the_end(layout):
    assert layout.find("A:") == layout.last == len(layout) - 1
    first = layout.find("Peru")
    assert layout.find("Q:", 2) <= first < layout.find("A:")


def test_find_by_id(layout):
    token = layout.token_ids[layout.last]
    assert layout.find(token) == layout.last
    assert layout.find_all(token) == [i for i, t in enumerate(layout.token_ids) if t == token]
    assert layout.find(4, 0) == layout.image[0].positions[0]


def test_span_is_every_token_that_holds_a_part(layout):
    for text in ("Greece", "reec", "red is the colour", "A:Athens\n\nQ:", ":"):
        n = 0 if text == ":" else None
        span = layout.span(text, n)
        assert span == list(range(span[0], span[-1] + 1))
        joined = "".join(layout.strings[i] for i in span)
        assert text in joined
        assert text not in "".join(layout.strings[i] for i in span[1:])
        assert text not in "".join(layout.strings[i] for i in span[:-1])


def test_words_do_not_join_across_a_picture(vlm):
    layout = vlm.prompt("Q:<image>A:", [tiny.noise_picture()]).layout
    with pytest.raises(PositionError, match="does not occur"):
        layout.find(":A")
    with pytest.raises(PositionError, match="does not occur"):
        layout.span("Q:A:")


def test_errors(layout):
    for ask in (lambda: layout.find("Spain"), lambda: layout.find(399)):
        with pytest.raises(PositionError, match="does not occur in this prompt. Its text is"):
            ask()
    with pytest.raises(PositionError, match="occurs 3 times .* occurrence 3"):
        layout.find("A:", 3)
    with pytest.raises(PositionError, match="occurrence -4"):
        layout.find("A:", -4)
    with pytest.raises(PositionError, match="say which with n=0"):
        layout.span("A:")
    with pytest.raises(PositionError, match="occurrence 7"):
        layout.span("A:", 7)
    with pytest.raises(PositionError, match="empty string"):
        layout.find("")
    with pytest.raises(PositionError, match="1 picture; image 1"):
        _ = layout.image[1]


def test_without_a_tokenizer():
    layout = Layout((5, 6, 5), (), ("text",) * 3)
    assert layout.find(5) == 2
    with pytest.raises(PositionError, match="without a tokenizer"):
        layout.find("a")
    assert layout.to_dataframe()["token"].isna().all()


def test_padding_is_nowhere(vlm):
    batch = vlm.prompt(["Q:Greece\nA:Athens\n\nQ:Peru\nA:", "Q:Peru\nA:"])
    short = batch.layouts[1]
    pad = vlm.tokenizer.pad_token_id
    assert short.kinds[0] == "pad"
    assert short.start == short.kinds.count("pad") > 0
    assert short.last == batch.length - 1
    with pytest.raises(PositionError, match="does not occur"):
        short.find(pad)
    with pytest.raises(PositionError, match="does not occur"):
        short.find("<pad>")
    alone = vlm.prompt("Q:Peru\nA:").layout
    for needle in ("Peru", ":", "A"):
        assert short.find(needle) - short.start == alone.find(needle)


def test_right_padding_from_a_processor(llama):
    inputs = llama.tokenizer(
        ["Q:Greece\nA:", "Q:"], padding=True, padding_side="right", return_tensors="pt"
    )
    long, short = llama.as_prompt(dict(inputs)).layouts
    assert short.kinds[-1] == "pad"
    assert short.last < long.last
    assert short.last == short.find(":")


def test_several_pictures_and_kinds(vlm):
    pictures = [tiny.noise_picture(i) for i in range(3)]
    prompt = vlm.prompt(["Q:<image>\nQ:<image>\nA:", "<image>"], pictures)
    first, second = prompt.layouts
    assert [i.index for i in first.images] == [0, 1]
    assert [i.index for i in second.images] == [0]
    for layout in prompt.layouts:
        for image in layout.images:
            assert layout.of_kind(f"image {image.index}") == list(image.positions)
            assert {layout.token_ids[p] for p in image.positions} == {4}
    rows = [image.vision.sequences[0][0] for layout in prompt.layouts for image in layout.images]
    assert rows == [0, 1, 2]
    assert [image.grid.row for image in first.images] == [0, 0]
    assert second.images[0].grid.row == 1
    assert first.of_kind("special") == [first.start]


def test_as_a_table(clip):
    layout = clip.prompt("Q:<image>\nA:", [tiny.noise_picture(0, (64, 32))]).layout
    table = layout.to_dataframe()
    assert table["position"].tolist() == list(range(len(layout)))
    patch = table[table["position"] == layout.image[0].patch(1, 2)].iloc[0]
    assert patch["patch"] == (1, 2)
    assert patch["pixels"] == layout.image[0].pixels(int(patch["position"]))
    assert "4 x 4 patches" in repr(layout)


def test_pictures_print_themselves_shortly(clip, picture):
    image = clip.prompt("Q:<image>", [picture]).layout.image[0]
    grid = image.grid
    spans = f"{grid.positions[0]}..{grid.positions[-1]}"
    assert repr(image).startswith(
        f"ImageLayout(0; text: {grid.rows} x {grid.cols} patches at {spans}"
    )
    assert repr(grid).endswith(f"at {spans}, row 0; of a 40 x 30 picture)")
    assert (
        as_ranges([1, 3, 4, 5, 9]) == "1, 3..5, 9" and as_ranges(range(0, 20, 2), 2) == "0, 2, ..."
    )
