"""File names that come from data stay below the folder they are meant for."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.files import MAX_NAME, resolve_within, safe_name

TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=300)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data/sub").mkdir(parents=True)
    (tmp_path / "data/sub/a.wav").touch()
    (tmp_path / "secret.wav").touch()
    (tmp_path / "database").mkdir()
    return tmp_path / "data"


def test_files_below_the_root_are_found(root):
    file = root / "sub/a.wav"
    (root / "link.wav").symlink_to("sub/a.wav")
    for path in ("sub/a.wav", "./sub/../sub/a.wav", str(file), file, "link.wav"):
        assert resolve_within(root, path) == file.resolve()
    assert resolve_within(root, "sub/not-yet.wav") == root.resolve() / "sub/not-yet.wav"
    # A root that is itself reached by a link is the folder that the link leads to.
    (root.parent / "alias").symlink_to(root)
    assert resolve_within(root.parent / "alias", "sub/a.wav") == file.resolve()
    assert resolve_within(root.parent / "alias", root.parent / "alias/sub/a.wav") == file.resolve()


@pytest.mark.parametrize(
    "path",
    [
        "../secret.wav", "sub/../../secret.wav", "/etc/passwd", "out.wav", "out/secret.wav", "sub/up.wav",
        "../database/x", "a.wav\0.txt", "", ".", "..", "sub/..", "loop/x", "x" * 5000,
    ],
)  # fmt: skip
def test_what_leads_elsewhere_is_refused(root, path):
    (root / "out.wav").symlink_to(root.parent / "secret.wav")
    (root / "out").symlink_to(root.parent)
    (root / "sub/up.wav").symlink_to("../../secret.wav")
    (root / "loop").symlink_to("loop")
    if path == "x" * 5000:
        try:
            found = resolve_within(root, path)
        except InputError:
            return
        assert found.parent == root.resolve()  # where the system leaves the length to whoever opens it
        return
    with pytest.raises(InputError, match=r"not below|not the name of a file"):
        resolve_within(root, path)


@settings(deadline=None)
@given(TEXTS)
@example("../../x")
@example("/etc/passwd")
@example("..")
@example("")
@example("a\0b")
@example("frage/τ\n")
def test_a_safe_name_is_one_plain_name(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "audio"
    name = safe_name(text)
    assert 0 < len(name) <= MAX_NAME + 13
    assert not set(name) & set("/\\\0\n: ")
    assert name[0] not in ".-_"
    assert resolve_within(folder, f"{name}-before.wav").parent == folder.resolve()


@settings(deadline=None)
@given(TEXTS, TEXTS)
@example("a/b", "a_b")
@example("../x", "x")
@example("A" * 90, "A" * 91)
@example("a/b", safe_name("a/b"))
@example("..", safe_name(".."))
def test_two_texts_never_share_a_name(one, other):
    assert (safe_name(one) == safe_name(other)) == (one == other)


def test_plain_names_stay_as_they_are():
    for name in ("held-00012", "train_7.b", "Q1"):
        assert safe_name(name) == name
