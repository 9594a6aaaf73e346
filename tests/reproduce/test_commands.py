"""The commands of docs/paper.md for the paper's models, on small ones of the same classes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

from vlm_lens import zoo
from vlm_lens.cli import app
from vlm_lens.model.checkpoints import CHECKPOINTS, base_of
from vlm_lens.tasks import PAPER_TASKS, Task, published

DOCS = Path(__file__).parents[2] / "docs" / "paper.md"
COMMANDS = re.findall(r"^\$ vlm-lens (reproduce .*--dtype float16.*)$", DOCS.read_text(), re.M)
SMALL = {"llava-1.5-7b": "toy-llava", "idefics2-8b": "toy-idefics2", "mantis-8b-fuyu": "toy-fuyu"}
SMALL |= {CHECKPOINTS[n].base_lm: base_of(m) for n, m in SMALL.items() if CHECKPOINTS[n].base_lm}
FOLDERS = {CHECKPOINTS[name].repo: str(zoo.path(small)) for name, small in SMALL.items()}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that holds the small models under the large ones' names, and the authors' data set."""
    for loader in ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM",
                   "AutoProcessor", "AutoTokenizer", "FuyuProcessor"):  # fmt: skip
        own = getattr(transformers, loader).from_pretrained

        def from_pretrained(name, *args, own=own, **options):
            if name in FOLDERS:
                options.pop("revision", None)
            return own(FOLDERS.get(name, name), *args, **options)

        monkeypatch.setattr(getattr(transformers, loader), "from_pretrained", from_pretrained)
    folder = tmp_path / "data"
    for name in PAPER_TASKS:
        write(Task.load(name), folder)
    monkeypatch.setattr(published, "fetch", lambda repo, **options: folder)


def write(task: Task, folder: Path) -> None:
    """A few rows of a task, as the authors lay out theirs."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for stem, rows in (("val", task.validation[:7]), ("test", task.test[:7])):
        records = []
        for row in rows:
            path = folder / "images" / task.name / f"{row.input}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            row.image.save(path)
            image = str(path.relative_to(folder))
            records.append({"input": row.input, "image": image, "output": row.output})
        data = records if stem == "val" else {"data": records}
        (folder / "annotations" / f"{task.name}_{stem}.json").write_text(json.dumps(data))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.split("--model ")[1].split()[0])
def test_it_runs_as_written(hub, tmp_path, command):
    """All flags as written, but the device and, for `all`, one experiment; one task, one seed."""
    asked = shlex.split(
        command.replace("--device cuda", "--device cpu").replace(" all ", " table2 ")
    )
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app,
        [*asked, "--tasks", "country-capital", "--seeds", "1", "--jobs", "1", "--out", str(out)],
    )
    assert done.exit_code == 0, done.output
    provenance = [json.loads(p.read_text()) for p in out.rglob("provenance.json")]
    assert provenance
    dtypes = {p["provenance"]["model"]["dtype"] for p in provenance if "model" in p["provenance"]}
    assert dtypes == {"float16"}


def test_there_are_five():
    assert len(COMMANDS) == 5
    assert {c.split("--model ")[1].split()[0] for c in COMMANDS} == {
        "llava-1.5-7b", "idefics2-8b", "mantis-8b-fuyu"}  # fmt: skip
