"""Runs of lines that stand twice: to the letter, by shape, and what does not count."""

from __future__ import annotations

from scripts.lint.repeats import COMMON, repeats

RUN = """\
total = first(x) + 1
for name, value in items.items():
    if value is not None and name not in seen:
        total += weight(name) * value
    seen.add(name)
return_value = [total, len(seen), max(seen)]
"""
RENAMED = RUN.replace("total", "count").replace("weight", "cost").replace("1", "2")


def test_a_run_to_the_letter():
    found = repeats({"a.py": "x = 0\n" + RUN, "b.py": "\n\n" + RUN, "c.py": "y = 0\n"})
    assert found == {("a.py", "b.py"): [(2, 3, 6)]}


def test_a_run_in_the_same_shape_with_other_names():
    assert repeats({"a.py": RUN, "b.py": RENAMED}) == {("a.py", "b.py"): [(1, 1, 6)]}
    other = RUN.replace("total += weight(name) * value", "total += weight(name) - value")
    assert repeats({"a.py": RUN, "b.py": other}) == {}


def test_a_longer_run_is_one_run_and_comments_do_not_break_it():
    longer = RUN + "print(return_value)\nseen.clear()\n"
    broken = longer.replace("print", "# a comment\n\nprint")
    assert repeats({"a.py": longer, "b.py": broken}) == {("a.py", "b.py"): [(1, 1, 8)]}


def test_a_file_that_repeats_itself():
    assert repeats({"a.py": RUN + RUN}) == {("a.py", "a.py"): [(1, 7, 6)]}


def test_imports_docstrings_and_tables_do_not_count():
    imports = "".join(f"from x{i} import (\n    a,\n    b,\n)\n" for i in range(4))
    text = '"""One.\n\nTwo.\nThree.\nFour.\nFive.\nSix.\nSeven.\n"""\n'
    table = "x = [\n" + "".join(f"    ({i}, 'a'),\n" for i in range(9)) + "]\n"
    other = table.replace("'a'", "'b'")
    assert repeats({"a.py": imports + text + table, "b.py": imports + text + other}) == {}


def test_what_stands_everywhere_is_an_idiom():
    assert repeats({f"{i}.py": RUN for i in range(COMMON + 1)}) == {}
