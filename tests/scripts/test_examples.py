"""Pages are run, and what they print is written below the code."""

from __future__ import annotations

import pytest

from scripts.docs import examples

PAGE = """\
# A page

```python
x = 0.5
print(x, "is x")
print()
```

```text
0.7 is x
```

Words.

```python
x += 1
```

```python
print("only for the eye", x)
```
```text
```

```text
not the output of code
```
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE)
    return path


def test_blocks_share_names_and_know_what_is_shown_below_them(page):
    first, second, third = examples.blocks(page)
    assert (first.line, first.shown) == (3, "0.7 is x\n")
    assert second.shown is None and third.shown == ""
    namespace: dict = {}
    assert examples.run(page, namespace) == ["0.5 is x\n", "\n", "only for the eye 1.5\n"]
    assert namespace["x"] == 1.5


def test_a_stale_page_is_told_and_filled(page, capsys):
    assert examples.main([str(page), "--check"]) == 1
    assert "stale: page.md" in capsys.readouterr().err and page.read_text() == PAGE
    assert examples.main([str(page)]) == 0
    text = page.read_text()
    assert text == PAGE.replace("0.7 is x", "0.5 is x").replace(
        "```text\n```", "```text\nonly for the eye 1.5\n```"
    )
    assert examples.main([str(page), "--check"]) == 0


def test_a_failure_names_the_line_of_the_page(page):
    page.write_text(PAGE.replace("x += 1", "x += y"))
    with pytest.raises(NameError) as error:
        examples.run(page)
    last = error.traceback[-1]
    assert last.path == page and last.lineno + 1 == PAGE.splitlines().index("x += 1") + 1


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("prob 0.695141", "prob 0.695139", True),
        ("prob 0.695141", "prob 0.690139", False),
        ("8 of 10", "9 of 10", False),
        ("Athens 0.5", "Lima 0.5", False),
        ("1.0, 2.0", "1.0", False),
    ],
)
def test_numbers_may_differ_by_rounding(shown, printed, same):
    assert examples.alike(shown, printed) is same
