import shutil
import sysconfig

import pytest

from jgolf import config as configs
from jgolf.cli import main
from jgolf.data import demo as demo_module
from jgolf.data.demo import DEMO_FOLDER, build_demo, demo, demo_is_due, validation_text
from jgolf.data.documents import read_documents
from jgolf.data.shards import TokenStream, find_shards
from jgolf.data.tokenizer import find_tokenizer
from jgolf.errors import DataError, JgolfError

FILES = {
    "demo.json",
    "train.txt",
    "val.txt",
    "demo_1024_bpe.model",
    "fineweb_train_000000.bin",
    "fineweb_val_000000.bin",
    "fineweb_val_bytes_000000.bin",
}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_built(demo_dir):
    assert set(contents(demo_dir)) == FILES
    assert find_tokenizer(demo_dir).name == "demo_1024_bpe.model"
    assert 1_500_000 < (demo_dir / "train.txt").stat().st_size < 4_100_000
    assert 150_000 < len(validation_text(demo_dir)) < 200_000
    assert len(TokenStream(find_shards(demo_dir, "train"), vocab_size=1024)) > 500_000
    assert len(TokenStream(find_shards(demo_dir, "val"), vocab_size=1024)) > 50_000


def test_held_out_documents_are_not_trained_on(demo_dir):
    train = (demo_dir / "train.txt").read_text()
    held_out = list(read_documents([demo_dir / "val.txt"]))
    assert len(held_out) > 20
    for document in held_out:
        for start in range(0, len(document) - 200, 50):
            assert document[start : start + 200] not in train


def test_same_python_same_files(demo_dir, tmp_path):
    build_demo(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(demo_dir)


@pytest.fixture
def quick_text(demo_dir, monkeypatch):
    """Spares the search for text."""
    train, validation = ((demo_dir / f"{split}.txt").read_text().splitlines() for split in ("train", "val"))
    monkeypatch.setattr(demo_module, "_split", lambda documents: (train, validation))
    monkeypatch.setattr(demo_module, "_documents", lambda library: {})


@pytest.fixture
def no_building(monkeypatch):
    def build(*_):
        raise AssertionError("the demo is built")

    monkeypatch.setattr(demo_module, "_documents", build)


@pytest.mark.usefixtures("no_building")
def test_complete_is_kept(demo_dir, tmp_path, capsys):
    folder = shutil.copytree(demo_dir, tmp_path / "demo")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    demo(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert "fineweb_train_000000.bin" in capsys.readouterr().out


@pytest.mark.usefixtures("no_building")
@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("train.txt", b"my own text\n", "train.txt is not as it was built"),
        ("fineweb_train_000000.bin", b"my own tokens", "fineweb_train_000000.bin is not as it was built"),
        ("demo_1024_bpe.model", None, "demo_1024_bpe.model is missing"),
        ("demo.json", b'{"format": 1, "files": {}}', "demo.json is of another version, or of a build"),
        ("demo.json", b'{"files": ["train.txt"]}', "demo.json is not the demo's, or damaged"),
        ("demo.json", b"[" * 100_000, "demo.json is not the demo's, or damaged"),
        ("demo.json", None, "there is no demo.json"),
    ],
)
def test_a_demo_that_was_changed_is_not_written_over(name, content, found, demo_dir, tmp_path):
    folder = shutil.copytree(demo_dir, tmp_path / "demo")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    before = contents(folder)
    with pytest.raises(DataError) as error:
        build_demo(folder)
    assert "not empty, and not the complete demo corpus" in str(error.value) and found in str(error.value)
    assert contents(folder) == before


@pytest.mark.usefixtures("no_building")
@pytest.mark.parametrize("name", ["train.txt", "val.txt", "notes.md", "fineweb_train_000000.bin"])
def test_other_people_s_files_are_left_alone(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    assert main(["data", "demo", "--out", str(tmp_path)]) == 2
    assert "there is no demo.json" in capsys.readouterr().err
    assert contents(tmp_path) == {name: b"mine"}


@pytest.mark.usefixtures("quick_text")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_build_leaves_nothing(error, demo_dir, tmp_path, monkeypatch):
    def interrupted(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, JgolfError)):
        patch.setattr(demo_module, "pack_documents", interrupted)
        build_demo(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "demo").mkdir()
    build_demo(tmp_path / "demo")
    assert contents(tmp_path / "demo") == contents(demo_dir)


@pytest.mark.usefixtures("quick_text")
def test_two_builds_at_once(demo_dir, tmp_path, monkeypatch):
    fill = demo_module._fill

    def slow(folder, *documents):
        shutil.copytree(demo_dir, tmp_path / "demo")  # another process was faster
        fill(folder, *documents)

    monkeypatch.setattr(demo_module, "_fill", slow)
    build_demo(tmp_path / "demo")
    assert contents(tmp_path / "demo") == contents(demo_dir)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


# --- when a run builds it --------------------------------------------------------------------


def demo_config(**values):
    return configs.replace_all(configs.load("demo"), {name.replace("__", "."): value for name, value in values.items()})


def test_a_run_builds_it_in_its_own_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(demo_is_due(demo_config(data__dir=name)) for name in ("data/demo", "./data/demo/", str(DEMO_FOLDER)))
    assert demo_is_due(demo_config(data__dir=str(tmp_path / "data" / "demo")))
    assert not demo_is_due(demo_config(data__build_demo=False))
    for name in ("mispelt", "data", "data/demo2", str(tmp_path)):
        assert not demo_is_due(demo_config(data__dir=name))
    DEMO_FOLDER.mkdir(parents=True)
    assert demo_is_due(demo_config())
    (DEMO_FOLDER / "train.txt").write_text("mine")
    assert not demo_is_due(demo_config())


def test_a_run_that_could_not_use_it_does_not_build_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"a tokenizer of 1024 pieces, expected 256: set model\.vocab_size to 1024"):
        demo_is_due(demo_config(model__vocab_size=256))
    with pytest.raises(DataError, match=r"--tokenizer my\.model: the demo, .* has its own"):
        demo_is_due(demo_config(data__tokenizer="my.model"))
    assert demo_is_due(demo_config(data__tokenizer="data/demo/demo_1024_bpe.model"))


def test_python_without_sources(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "one.py").write_text(
        '"""A module with one rather short documentation string, and no more text."""\n'
    )
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    with pytest.raises(DataError, match=r"lib\) holds only 70 bytes of text, expected 1,000,000 or more"):
        build_demo(tmp_path / "out")


def test_passages(tmp_path):
    source = tmp_path / "m.py"
    source.write_text(
        '"""First: a documentation string,\n   over two lines, that is long enough to be kept here."""\n'
        "#!short\n"
        "# Second: a block of comment lines that\n"
        "# together are long enough to be kept too.\n"
        'x = "short"\n'
        'table = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"\n'
        'def f():\n    """Third:\n    # not a comment, but a line of a string long enough\n    """\n'
    )
    assert list(demo_module._passages(source)) == [
        "First: a documentation string, over two lines, that is long enough to be kept here.",
        "!short Second: a block of comment lines that together are long enough to be kept too.",
    ]
    source.write_text("def broken(:\n")
    assert list(demo_module._passages(source)) == []


def test_missing_validation_text(tmp_path):
    with pytest.raises(DataError, match=r"val\.txt: cannot be read: .*`jgolf data demo`"):
        validation_text(tmp_path)
