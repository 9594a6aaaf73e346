from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import pytest
from filelock import FileLock

from storage.kills import at_every_operation
from vlm_lens import VLMLensError
from vlm_lens.storage.folder import MANIFEST, FolderError, RunFolder, differences


def folder(path, identity=None, holds="a sweep"):
    return RunFolder(path, identity or {"prompt": "0" * 16, "version": "1"}, holds=holds)


def test_a_folder_is_begun_and_gone_on_with_wherever_the_process_ends(tmp_path):
    def begin():
        with folder(tmp_path / "f") as opened:
            opened.write("part-1", "text")

    def clear():
        for path in (tmp_path / "f").glob("*"):
            path.unlink()

    for _ in at_every_operation(clear, begin):
        begin()
        with folder(tmp_path / "f") as opened:
            assert [p.read_text() for p in opened.files("part-*")] == ["text"]


def test_another_run_is_refused_in_words(tmp_path):
    with folder(tmp_path):
        pass
    for other, said in (
        ({"prompt": "1" * 16, "version": "1"}, "another prompt: give"),
        ({"prompt": "0" * 16, "version": "2"}, r"another version \(1 there, 2 now\)"),
        ({"prompt": "1" * 16}, r"prompt and version \(1 there, none now\)"),
    ):
        with pytest.raises(FolderError, match=said), folder(tmp_path, other):
            pass
    with (
        pytest.raises(FolderError, match="holds a sweep, not readings"),
        folder(tmp_path, holds="readings"),
    ):
        pass


def test_other_files_and_damaged_manifests_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(FolderError, match="not empty"), folder(tmp_path / "mine"):
        pass
    assert sorted(os.listdir(tmp_path / "mine")) in (["notes.txt"], [".lock", "notes.txt"])
    with folder(tmp_path / "a"):
        pass
    for text in ("{", "[]", json.dumps({"format": "another"})):
        (tmp_path / "a" / MANIFEST).write_text(text)
        with (
            pytest.raises(VLMLensError, match=r"not JSON.*Give|something else"),
            folder(tmp_path / "a"),
        ):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match="cannot be made"), folder(tmp_path / "file"):
        pass


def test_one_owner_at_a_time(tmp_path):
    with folder(tmp_path):
        with (
            pytest.raises(FolderError, match="Another process, or another thread"),
            folder(tmp_path),
        ):
            pass
        with pytest.raises(FolderError, match="Another process"), folder(tmp_path):
            pass
    with folder(tmp_path):  # free again
        pass
    with pytest.raises(ZeroDivisionError), folder(tmp_path):
        1 / 0  # noqa: B018
    with folder(tmp_path):
        pass


def test_a_second_process_is_refused_and_a_killed_owner_leaves_the_folder_free(tmp_path):
    code = (
        "import sys, time\n"
        "from vlm_lens.storage.folder import RunFolder\n"
        "with RunFolder(sys.argv[1], {'a': 1}, holds='a sweep'):\n"
        "    print('mine', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "mine\n"
        with pytest.raises(FolderError, match="Another process"), folder(tmp_path, {"a": 1}):
            pass
        owner.kill()
    with folder(tmp_path, {"a": 1}):
        pass


def test_a_read_only_folder_is_read_and_not_written(tmp_path, monkeypatch):
    with folder(tmp_path / "a"):
        pass

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with folder(tmp_path / "a") as opened, pytest.raises(FolderError, match="cannot be written to"):
        opened.must_be_writable()
    (tmp_path / "b").mkdir()
    with pytest.raises(FolderError, match="cannot be written to"), folder(tmp_path / "b"):
        pass


def test_differences_name_values_only_where_they_are_words():
    there, here = {"a": "f" * 16, "b": 1, "c": None}, {"a": "0" * 16, "b": 2, "c": None, "d": [1]}
    assert differences(there, here) == ["a", "b (1 there, 2 now)", "d"]
