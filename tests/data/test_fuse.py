"""A space and the case mark after it as one token: by the tokenizer, by a pass over shards, and by a plain loop."""

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from jgolf.audit.counts import text_bytes
from jgolf.cli import main
from jgolf.compress.pieces import join, split
from jgolf.data import fuse as fuse_module
from jgolf.data.case_ops import ESC, TITLE
from jgolf.data.fuse import fuse_shards
from jgolf.data.pack import pack_documents
from jgolf.data.pure_bytes import byte_tokenizer_file
from jgolf.data.sentence_piece import CaseOpsTokenizer, FusedTokenizer, fused_tokenizer
from jgolf.data.shards import open_shard, shards_in, sidecar_of, write_shard
from jgolf.data.text import Text, read_text, table_bytes
from jgolf.data.tokenizer import find_tokenizer, load_tokenizer
from jgolf.data.train_tokenizer import train_tokenizer
from jgolf.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden" / "case_ops"
MODEL = GOLDEN / "caseops_8192.model"
SPACE, PAIRS = 8133, {4: 8, 5: 9, 6: 10}  # of that model: the mark's id → the fused token's
TEXTS = [
    "The NASA iPhone, and The  End",
    "",
    " ",
    f"an operator {TITLE} and {ESC}{TITLE}x  A\t B",
    "ÉCOLE Ａ 漢字 É Ü.S.A. McDonald's",
    " Begins and ends with white space \n",
]
STRINGS = [one["text"] for one in json.loads((GOLDEN / "strings.json").read_text())]


def fused_plainly(tokens, counts):
    """A token at a time."""
    ids, sums = [], []
    for token, count in zip(map(int, tokens), map(int, counts), strict=True):
        if ids and ids[-1] == SPACE and token in PAIRS:
            ids[-1], sums[-1] = PAIRS[token], sums[-1] + count
        else:
            ids.append(token)
            sums.append(count)
    return ids, sums


def numbers(paths):
    return np.concatenate([open_shard(path) for path in paths]).tolist()


def contents(folder):
    """Name → bytes of every file, whatever the tokenizer is called."""
    return {path.name if path.suffix == ".bin" else path.suffix: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def plain():
    return load_tokenizer(MODEL)


@pytest.fixture(scope="module")
def fused(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "fused.model"
    path.write_bytes(fused_tokenizer(plain, path).model_bytes)
    return load_tokenizer(path, 8192)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("documents") / "docs.jsonl"
    texts = [*TEXTS, *json.loads((GOLDEN / "documents.json").read_text())]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def plain_dir(tmp_path, plain):
    """Both splits of golden text, in shards of which some end between a space and its mark."""
    golden = np.load(GOLDEN / "documents.npz")
    cuts = np.flatnonzero((golden["tokens"][:-1] == SPACE) & np.isin(golden["tokens"][1:], [*PAIRS]))[:4] + 1
    folder = tmp_path / "plain"
    folder.mkdir()
    for split_name, kinds in (("train", ["tokens"]), ("val", ["tokens", "sidecar"])):
        for kind in kinds:
            for number, part in enumerate(np.split(golden[kind], cuts)):
                path = folder / f"fineweb_{split_name}_{number:06d}.bin"
                write_shard(path if kind == "tokens" else sidecar_of(path), part)
    (folder / "t.model").write_bytes(plain.model_bytes)
    return folder


# --- the tokenizer -----------------------------------------------------------------------------


def test_its_ids_are_bytes_that_no_text_needs(fused):
    assert isinstance(fused, FusedTokenizer) and fused.fused == {one: mark for mark, one in PAIRS.items()}
    assert (fused.vocab_size, fused.bos_id, fused.counts_ends) == (8192, 1, False)
    assert fused.table_fault


@pytest.mark.parametrize("text", [*TEXTS, *(text for text in STRINGS if "\0" not in text)])
def test_a_text_and_its_ids(text, plain, fused):
    ids, counts = fused.encode_with_bytes(text)
    assert (ids, counts) == fused_plainly(*plain.encode_with_bytes(text))
    assert ids == fused.encode(text)
    assert fused.decode(ids) == plain.decode(plain.encode(text))
    assert fused.written_and_kept(text, ids) == plain.written_and_kept(text, plain.encode(text))
    tables = [int(table_bytes(np.array(one.encode(text)), one).sum()) for one in (plain, fused)]
    assert tables[0] == tables[1]


def test_an_escaped_mark_is_text(plain, fused):
    text = f"a {TITLE}b C"
    pieces = [plain._processor.id_to_piece(token) for token in fused.encode(text)]
    assert pieces == ["a", "▁", ESC, TITLE, "b", "<0x00>", "c"] and fused.encode_with_bytes(text)[1][-2:] == [1, 1]
    assert fused.decode(fused.encode(text)) == text


def test_sentencepiece_reads_the_file_as_the_tokenizer_that_does_not_fuse(fused, plain):
    processor = sentencepiece.SentencePieceProcessor(model_proto=fused.model_bytes)
    assert processor.encode(f"a {TITLE}the") == plain.encode("a The") and fused.fingerprint != plain.fingerprint


def test_a_lossless_tokenizer_keeps_every_text():
    texts = ["The  End of  The NASA\n\tReport. " + "".join(map(chr, range(97, 123)))] * 20
    plain = CaseOpsTokenizer("t.model", train_tokenizer(texts, 320, case_ops=True, lossless=True))
    fused = fused_tokenizer(plain, "f.model")
    spared = [plain._processor.id_to_piece(token) for token in fused.fused]
    assert spared == ["<0x00>", "<0x20>", "<0x2E>"]  # a space and a full stop have pieces of their own
    characters = "".join(map(chr, range(1, 0x3000)))
    assert fused.decode(fused.encode(characters)) == characters
    for text in ("a The  End\n The", "\x01\x02 A   B\x7f", "  A"):
        ids = fused.encode(text)
        assert fused.decode(ids) == text
        assert len(ids) < len(plain.encode(text)) or text == "  A"
        assert sum(fused.encode_with_bytes(text)[1]) == len(text.encode())


def test_what_cannot_be_fused(tmp_path, plain, fused):
    bytes_file = tmp_path / "bytes.json"
    bytes_file.write_bytes(byte_tokenizer_file())
    with pytest.raises(DataError, match=r"bytes\.json: has no case marks .* --case-ops"):
        fused_tokenizer(load_tokenizer(bytes_file), "f.model")
    with pytest.raises(DataError, match=r"fused\.model: fuses already; expected the tokenizer that"):
        fused_tokenizer(fused, "f.model")
    refusal = r"damaged\.model: a damaged tokenizer: fuses on ids .* expected those of three byte"
    for ids in ([8, 8, 9], [8, 9, 300], [8, 9, 65535]):
        damaged = tmp_path / "damaged.model"
        damaged.write_bytes(fused.model_bytes[:-6] + np.array(ids, "<u2").tobytes())
        with pytest.raises(DataError, match=refusal):
            load_tokenizer(damaged)


def test_a_tokenizer_is_not_fused_in_its_place(tmp_path, capsys):
    path = tmp_path / "case.model"
    path.write_bytes(MODEL.read_bytes())
    (tmp_path / "same.model").symlink_to(path)
    for out in (path, tmp_path / "same.model"):
        assert main(["data", "tokenizer", "--fuse", str(path), "--out", str(out)]) == 2
        assert f"--out {out}: the tokenizer to be fused" in capsys.readouterr().err
    assert path.read_bytes() == MODEL.read_bytes()


def test_a_text_with_a_byte_that_is_taken(tmp_path, fused):
    with pytest.raises(DataError, match=r"the text holds the byte <0x00>, whose id .*/fused\.model: take"):
        fused.encode("a\0b")
    documents = tmp_path / "docs.jsonl"
    documents.write_text('{"text": "A b"}\n{"text": "a\\u0000b"}\n')
    with pytest.raises(DataError, match=r"docs\.jsonl:2: the text holds the byte <0x00>"):
        pack_documents([documents], fused.path, tmp_path / "out", workers=1)
    text = Text.of(np.array([1, *fused.encode("A b"), 1, 5]), 1, np.zeros(6, np.uint16))
    with pytest.raises(DataError, match=r"docs\.jsonl: document 2: the text holds the byte <0x00>"):
        text_bytes(text, fused, [documents])
    data = b"An Ordinary Text, And A Long One, With A NUL: \0 And More Of It Behind That. " * 3
    pieces = split(data, fused)
    assert len(pieces.tokens) and join(pieces, len(data), fused) == data


# --- shards ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "shard_tokens"), [(1 << 20, 10**6), (7, 1000), (1, 997)])
def test_shards_are_those_of_a_plain_loop(tmp_path, plain_dir, monkeypatch, at_once, shard_tokens):
    monkeypatch.setattr(fuse_module, "_FUSED_AT_ONCE", at_once)
    golden = np.load(GOLDEN / "documents.npz")
    cut = [open_shard(path)[-1] for path in shards_in(plain_dir, "val")[:-1]]
    assert cut == [SPACE] * 4
    found = fuse_shards(plain_dir, tmp_path / "out", shard_tokens=shard_tokens)
    ids, counts = fused_plainly(golden["tokens"], golden["sidecar"])
    for split_name in ("train", "val"):
        shards = shards_in(tmp_path / "out", split_name)
        assert numbers(shards) == ids
        assert {len(open_shard(path)) for path in shards[:-1]} <= {shard_tokens}
        one = found[split_name]
        assert (one.before, one.after, one.shards) == (len(golden["tokens"]), len(ids), len(shards))
        assert list(one.pairs.values()) == [ids.count(token) for token in PAIRS.values()]
        assert one.before - one.after == sum(one.pairs.values()) > 0
    assert numbers(map(sidecar_of, shards)) == counts and sum(counts) == golden["sidecar"].sum() == one.num_bytes
    assert found["train"].num_bytes is None and not list((tmp_path / "out").glob("*train_bytes*"))
    text = read_text(shards, load_tokenizer(find_tokenizer(tmp_path / "out")))
    assert int(text.target_bytes.sum(dtype=int)) == golden["sidecar"].sum()
    np.testing.assert_array_equal(text.starts, np.flatnonzero(np.array(ids) == 1))


def test_documents_packed_and_shards_fused_are_the_same_files(tmp_path, documents, fused):
    for split_name, counted in (("train", None), ("val", None)):
        pack_documents([documents], MODEL, tmp_path / "plain", split_name, 997, byte_counts=counted, workers=1)
        pack_documents([documents], fused.path, tmp_path / "packed", split_name, 1501, byte_counts=counted, workers=1)
    fuse_shards(tmp_path / "plain", tmp_path / "fused", shard_tokens=1501)
    assert contents(tmp_path / "fused") == contents(tmp_path / "packed")
    assert (tmp_path / "fused" / "caseops_8192_fused.model").read_bytes() == fused.model_bytes


def test_by_the_command_line(tmp_path, plain_dir, fused, capsys):
    assert main(["data", "tokenizer", "--fuse", str(MODEL), "--out", str(tmp_path / "f.model")]) == 0
    assert (tmp_path / "f.model").read_bytes() == fused.model_bytes
    assert "8192 pieces; ids of fused tokens: 8, 9, 10" in capsys.readouterr().out
    assert main(["data", "tokenizer", "x.txt", "--fuse", str(MODEL), "--out", str(tmp_path / "g.model")]) == 2
    assert "--fuse: expected without documents" in capsys.readouterr().err
    assert main(["data", "fuse", str(plain_dir), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert " of ▁⟨TITLE⟩, " in told and " bytes, as before; 1 shard\n" in told and "train: " in told
    assert main(["data", "inspect", str(tmp_path / "out")]) == 0


def refused(plain_dir, out, message, **options):
    with pytest.raises(DataError, match=message):
        fuse_shards(plain_dir, out, **options)
    assert not out.exists() or not [path for path in out.iterdir() if path.is_dir()]


def test_shards_that_cannot_be_fused(tmp_path, plain_dir, fused):
    out = tmp_path / "out"
    last = shards_in(plain_dir, "val")[-1]
    tokens = np.array(open_shard(last))
    tokens[30] = 9
    write_shard(last, tokens)
    refused(plain_dir, out, rf"{last.name}: token 30 has the id 9, .* fused already, or their text holds")
    assert not out.exists() or not list(out.iterdir())  # nothing of the training split either
    sidecar_of(last).unlink()
    refused(plain_dir, out, rf"{last.name}: no byte counts are beside it")
    for path in shards_in(plain_dir, "val"):
        sidecar_of(path).unlink(missing_ok=True)
    refused(plain_dir, out, r"fineweb_val_000000\.bin: its bytes cannot be counted without")
    refused(plain_dir, out, "fuses already", tokenizer_path=fused.path)
    refused(plain_dir, plain_dir, "choose another folder")
    refused(plain_dir, out, "--shard-tokens 0: expected at least 1", shard_tokens=0)
    refused(tmp_path / "nothing", out, "no such data folder")


def test_shards_that_are_there_stay(tmp_path, plain_dir):
    out = tmp_path / "out"
    fuse_shards(plain_dir, out)
    before = contents(out)
    refused(plain_dir, out, "already holds 3 train and val shards .* --overwrite")
    refused(out, tmp_path / "twice", "fuses already")
    fuse_shards(plain_dir, out, shard_tokens=500, overwrite=True)
    assert len(shards_in(out, "train")) > 1
    fuse_shards(plain_dir, out, overwrite=True)
    assert contents(out) == before


def test_more_bytes_than_a_sidecar_counts(tmp_path, plain_dir):
    first = shards_in(plain_dir, "val")[0]
    counts = np.array(open_shard(sidecar_of(first)))
    counts[-1] = 65_535
    write_shard(sidecar_of(first), counts)
    second = shards_in(plain_dir, "val")[1]
    counts = np.array(open_shard(sidecar_of(second)))
    counts[0] = 3
    write_shard(sidecar_of(second), counts)
    refused(plain_dir, tmp_path / "out", r"val_bytes_000001\.bin: a fused token would stand for 65,538 bytes")
