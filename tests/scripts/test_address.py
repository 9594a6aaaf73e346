"""One command says where the repository is, on every page and in every notebook."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from scripts.docs import address

NEW = "https://example.org/someone/vlm_lens.git"


def test_all_places_are_known_and_say_the_same():
    found = address.places()
    notebooks = [f for f in found if f.suffix == ".ipynb"]
    assert len(notebooks) == 6 and len(found) > 7
    said = {s for places in found.values() for s in places}
    assert said == {address.NONE, ""} or len(said) == 1
    for page in (address.ROOT / "README.md", *(address.ROOT / "docs").glob("*.md")):
        clones = len(re.findall(r"git clone", page.read_text()))
        assert clones == len(found.get(page, ())), page.name


def test_an_address_is_written_everywhere_and_taken_back(tmp_path):
    for file in address.places():
        to = tmp_path / file.relative_to(address.ROOT)
        to.parent.mkdir(exist_ok=True)
        shutil.copy(file, to)
    before = {f: f.read_text() for f in address.places(tmp_path)}
    with pytest.raises(ValueError, match="no address"):
        address.write('x" && rm -rf /', tmp_path)
    changed = address.write(NEW, tmp_path)
    assert changed == list(before)
    assert {s for said in address.places(tmp_path).values() for s in said} == {NEW}
    for file in changed:
        text = file.read_text()
        if file.suffix == ".ipynb":
            cells = ("".join(cell["source"]) for cell in json.loads(text)["cells"])
            assert any(f'REPOSITORY = "{NEW}"' in cell for cell in cells)
        else:
            assert f"git clone {NEW} vlm_lens && cd vlm_lens" in text
    assert address.write(NEW, tmp_path) == []
    address.write(address.NONE, tmp_path)
    assert {f: f.read_text() for f in address.places(tmp_path)} == before
