"""The authors' data as they publish it: a folder, archives, a data set in Hugging Face's cache."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from vlm_lens.tasks import Task, TaskError
from vlm_lens.tasks.published import find, task_names

REPO = "owner/pictures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fill(folder: Path, names: tuple[str, ...] = ("country-capital",)) -> Path:
    """Annotations and pictures in a folder, as the authors lay them out."""
    for name in names:
        (folder / "annotations").mkdir(parents=True, exist_ok=True)
        for stem, inputs in (("val", ("Peru", "Fiji")), ("test", ("Mali",))):
            records = []
            for given in inputs:
                path = f"images/{name}/{given}.jpg"
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (448, 300), "red").save(folder / path)
                records.append({"input": given, "image": path, "output": f"of {given}"})
            data = records if stem == "val" else {"data": records}
            (folder / "annotations" / f"{name}_{stem}.json").write_text(json.dumps(data))
    return folder


def pack(folder: Path, part: str, *, inside: bool) -> None:
    """Replaces a folder by an archive of it, whose paths begin with its name or do not."""
    with zipfile.ZipFile(folder / f"{part}.zip", "w") as archive:
        for path in sorted((folder / part).rglob("*")):
            start = folder if inside else folder / part
            if path.is_file():
                archive.write(path, path.relative_to(start))
                path.unlink()
    for path in sorted((folder / part).rglob("*"), reverse=True):
        path.rmdir()
    (folder / part).rmdir()


def values(task: Task) -> list:
    return [(row.input, row.answers, row.image.size, row.image.getpixel((9, 9))) for row in task]


@pytest.mark.parametrize("inside", [True, False])
def test_archives_are_read_as_they_are(tmp_path: Path, inside: bool) -> None:
    plain = Task.from_folder(fill(tmp_path / "plain"))
    packed = fill(tmp_path / "packed")
    for part in ("annotations", "images"):
        pack(packed, part, inside=inside)
    before = sorted(packed.rglob("*"))
    task = Task.from_folder(packed)
    assert values(task) == values(plain)
    assert task["Peru"].image.size == (224, 150)
    assert sorted(packed.rglob("*")) == before


def test_a_folder_data_and_several_tasks(tmp_path: Path) -> None:
    fill(tmp_path / "data", ("country-capital", "food-color"))
    assert task_names(find(tmp_path)) == ("country-capital", "food-color")
    assert Task.from_folder(tmp_path, "food-color")["Mali"].output == "of Mali"
    with pytest.raises(TaskError, match="found: country-capital, food-color"):
        Task.from_folder(tmp_path)


def test_nothing_there_and_damaged_archives(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is no folder"):
        Task.from_folder(tmp_path / "none")
    with pytest.raises(TaskError, match="holds no folder 'annotations'"):
        Task.from_folder(tmp_path)
    fill(tmp_path)
    (tmp_path / "images.zip").write_bytes(b"no archive")
    with pytest.raises(TaskError, match="images.zip is no archive that can be read"):
        Task.from_folder(tmp_path)


def test_a_picture_that_is_not_in_the_archive(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "images/country-capital/Mali.jpg").unlink()
    pack(tmp_path, "images", inside=True)
    with pytest.raises(TaskError, match="object 0: the picture of 'Mali' is not there"):
        Task.from_folder(tmp_path)
    (tmp_path / "images.zip").unlink()
    fill(tmp_path)
    (tmp_path / "images/country-capital/Mali.jpg").write_bytes(b"no picture")
    pack(tmp_path, "images", inside=True)
    with pytest.raises(TaskError, match="'Mali' is no picture that Pillow knows"):
        Task.from_folder(tmp_path)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache as huggingface_hub lays it out: snapshots of links to blobs, and references."""
    root = tmp_path / "hub" / "datasets--owner--pictures"
    files = fill(tmp_path / "files" / "data")
    for part in ("annotations", "images"):
        pack(files, part, inside=True)
    snapshot = root / "snapshots" / COMMIT
    (snapshot / "data").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for path in files.iterdir():
        blob = root / "blobs" / f"blob-of-{path.stem}"
        path.rename(blob)
        (snapshot / "data" / path.name).symlink_to(Path("../../../blobs") / blob.name)
    return tmp_path / "hub"


def test_from_the_cache_without_a_network(cache: Path, tmp_path: Path) -> None:
    plain = Task.from_folder(fill(tmp_path / "plain"))
    for revision in (None, "main", COMMIT):
        task = Task.from_hub(REPO, cache_dir=cache, revision=revision, local_files_only=True)
        assert values(task) == values(plain)
    assert (task.name, task.instruction) == (plain.name, plain.instruction)
    named = Task.from_hub(REPO, "country-capital", cache_dir=cache, instruction="X:", width=None)
    assert named.instruction == "X:" and named["Peru"].image.size == (448, 300)


def test_what_is_not_in_the_cache_says_what_to_do(cache: Path) -> None:
    with pytest.raises(TaskError, match=r"'owner/other' is not in the cache .*this run is offline"):
        Task.from_hub("owner/other", cache_dir=cache)
    with pytest.raises(TaskError, match=r"at revision v2 is not in the cache.*hf download"):
        Task.from_hub(REPO, revision="v2", cache_dir=cache)
    with pytest.raises(TaskError, match="write 'owner/name'"):
        Task.from_hub("one/two/three", cache_dir=cache)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "path",
    ["../secret.png", "images/../../secret.png", "{root}/secret.png", "images/..", 3, "a\0b",
     "..\\secret.png", "C:\\secret.png", "\\\\host\\secret.png"],
)  # fmt: skip
def test_a_picture_outside_the_data_is_refused(tmp_path: Path, path: str, packed: bool) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    folder = fill(tmp_path / "data")
    file = folder / "annotations" / "country-capital_val.json"
    records = json.loads(file.read_text())
    records[1]["image"] = path.format(root=tmp_path) if isinstance(path, str) else path
    file.write_text(json.dumps(records))
    if packed:
        pack(folder, "images", inside=True)
    with pytest.raises(TaskError, match=r"object 1: the path of a picture"):
        Task.from_folder(folder)


@pytest.mark.parametrize("what", ["picture", "folder of pictures", "annotations"])
def test_a_link_out_of_the_data_is_refused(tmp_path: Path, what: str) -> None:
    folder, other = fill(tmp_path / "data"), fill(tmp_path / "other")
    target = {
        "picture": Path("images/country-capital/Peru.jpg"), "folder of pictures": Path("images"),
        "annotations": Path("annotations/country-capital_val.json"),
    }[what]  # fmt: skip
    shutil.rmtree(folder / target) if (folder / target).is_dir() else (folder / target).unlink()
    (folder / target).symlink_to(other / target)
    with pytest.raises(TaskError, match="leads out of"):
        Task.from_folder(folder)
    (folder / target).unlink()
    inner = folder / "inner"  # within the data links are followed
    shutil.move(other / target, inner)
    (folder / target).symlink_to(inner)
    assert len(Task.from_folder(folder)) == 3


def test_annotations_in_another_encoding_are_said(tmp_path: Path) -> None:
    folder = fill(tmp_path)
    file = folder / "annotations" / "country-capital_test.json"
    file.write_bytes('[{"input": "Côte", "output": "x"}]'.encode("latin-1"))
    with pytest.raises(TaskError, match="not JSON in UTF-8"):
        Task.from_folder(folder)
