from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from storage.kills import at_every_operation
from vlm_lens import VLMLensError
from vlm_lens.storage.files import (
    FileError,
    current,
    read_json,
    read_tensors,
    remove_rests,
    write_tensors,
    write_whole,
    written_together,
)


def test_a_file_is_old_or_new_wherever_the_process_ends(tmp_path):
    path, seen = tmp_path / "a" / "b.txt", set()
    for _ in at_every_operation(lambda: write_whole(path, "old"), lambda: write_whole(path, "new")):
        seen.add(path.read_text())
    assert seen == {"old", "new"} and path.read_text() == "new"


def test_files_together_are_of_one_save_wherever_the_process_ends(tmp_path):
    def save(word, names):
        with written_together(tmp_path, "set", remove=["a", "b", "c"]) as to:
            for name in names:
                (to / name).write_text(word)

    def read():
        return [p.read_text() for n in "abc" if (p := current(tmp_path / n, "set")).exists()]

    seen = []
    save("old", "ab")
    for _ in at_every_operation(lambda: save("old", "ab"), lambda: save("new", "bc")):
        found = read()
        assert "".join(found) in ("oldold", "newnew", "oldnewnew")
        seen.append(current(tmp_path / "c", "set").exists())
        # what a reader asks for is told by the set itself: b is there in both
        word = current(tmp_path / "b", "set").read_text()
        assert (word == "new") == current(tmp_path / "c", "set").exists()
    assert {True, False} == set(seen)
    assert read() == ["new", "new"]
    left = [p.name for p in tmp_path.iterdir() if p.suffix != ".partial"]  # this process lives
    assert sorted(left) == ["b", "c"]


def test_an_error_while_writing_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a", "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="the disk is full"):
        write_whole(path, "new")
    with pytest.raises(FileError, match="the disk is full"):
        write_tensors(path, {"x": torch.ones(2)})
    with (
        pytest.raises(FileError, match="the disk is full"),
        written_together(tmp_path, "set") as to,
    ):
        (to / "a").write_text("new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["b/c", "a"])
def test_what_cannot_be_written_is_said(name, tmp_path):
    (tmp_path / "b").write_text("a file")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").mkdir()
    with pytest.raises(VLMLensError, match="a (file|folder) stands where"):
        write_whole(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("code, said", [(errno.EROFS, "read-only"), (errno.EACCES, "permission")])
def test_a_read_only_folder_is_said(code, said, tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(code, "no")

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(FileError, match=said):
        write_whole(tmp_path / "a", "text")


def test_damaged_files_are_said(tmp_path):
    whole = write_tensors(tmp_path / "x", {"a": torch.arange(100)}, {"about": "it"})
    tensors, about = read_tensors(whole)
    assert torch.equal(tensors["a"], torch.arange(100)) and about == {"about": "it"}
    whole.write_bytes(whole.read_bytes()[:-8])
    for path in (whole, tmp_path / "nothing"):
        with pytest.raises(FileError, match="not a safetensors file that can be read"):
            read_tensors(path)
    (tmp_path / "j").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(FileError, match="not JSON"):
        read_json(tmp_path / "j")
    with pytest.raises(FileError, match="There is no file"):
        read_json(tmp_path / "k")


def test_rests_of_processes_that_ended_are_removed_and_no_others(tmp_path):
    code = (
        "import os, sys\n"
        "from vlm_lens.storage import files\n"
        "for name in 'ab': open(files.partial_name(name), 'w').close()\n"
        "os.mkdir(files.partial_name('c'))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    from vlm_lens.storage.files import partial_name

    mine = tmp_path / partial_name("mine")
    mine.touch()
    (tmp_path / ".hidden.partial").touch()  # somebody else's
    assert len(os.listdir(tmp_path)) == 5
    remove_rests(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted([mine.name, ".hidden.partial"])
