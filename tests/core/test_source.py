"""The digest of the program changes with every byte and every name of its modules, and with nothing else."""

from pathlib import Path

import pytest

from pmemx.core import source


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of two modules that is taken for the program."""
    root = tmp_path / "pmemx"
    (root / "core").mkdir(parents=True)
    (root / "core" / "source.py").write_text("a = 1\n")
    (root / "other.py").write_text("b = 2\n")
    monkeypatch.setattr(source, "__file__", str(root / "core" / "source.py"))
    return root


def digest() -> str:
    return source.source_digest.__wrapped__()


def test_it_is_the_same_until_a_module_changes(package):
    before = digest()
    assert len(before) == 64 and digest() == before
    (package / "notes.md").write_text("no module")
    assert digest() == before
    (package / "other.py").write_text("b = 3\n")
    assert digest() != before
    (package / "other.py").write_text("b = 2\n")
    assert digest() == before


def test_a_module_that_is_added_renamed_or_moved_changes_it(package):
    seen = {digest()}
    (package / "empty.py").touch()
    seen.add(digest())
    (package / "empty.py").rename(package / "void.py")
    seen.add(digest())
    (package / "void.py").rename(package / "core" / "void.py")
    seen.add(digest())
    assert len(seen) == 4


def test_it_does_not_depend_on_where_the_program_lies(package, tmp_path, monkeypatch):
    before = digest()
    package.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(source, "__file__", str(tmp_path / "elsewhere" / "core" / "source.py"))
    assert digest() == before


def test_text_that_moves_from_one_module_to_the_next_changes_it(package):
    """A name and a text say where they end: b.py of "x" and c.py of "y" are not b.py of "xc.pyy"."""
    (package / "b.py").write_text("x")
    (package / "c.py").write_text("y")
    before = digest()
    (package / "c.py").unlink()
    (package / "b.py").write_text("xc.pyy")
    assert digest() != before
