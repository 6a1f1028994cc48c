"""Reading of GGUF files: broken ones in one line, tokenizers against sentencepiece and transformers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize

from jora_core.architecture.model_config import ModelConfig
from jora_core.architecture.rope_config import RopeScaling
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.weights.gguf.convert_gguf import convert_gguf
from jora_core.weights.gguf.gguf_file import GgufFile, GgufModel
from jora_core.weights.gguf.read_tokenizer import write_tokenizer
from jora_core.weights.gguf.rope_factors import llama3_divisors, read_rope_fields
from jora_core.weights.gguf.write_gguf import write_gguf
from tests.jora_core.weights.gguf.gguf_cases import TEXTS, make_folder

TRAPS = [
    "  two spaces",
    "</s> and <s> are text",
    "ünïcödé ▁ <0x0A>",
    "1234567 x\n\n\ty",
    "🙂 你好",
    "e\u0301",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a tiny Llama."""
    folder = tmp_path_factory.mktemp("tiny")
    make_folder(folder / "hf", "llama")
    write_gguf(folder / "hf", ModelConfig.from_hf(folder / "hf"), folder / "tiny.gguf", "q8_0", "tiny")
    return folder / "tiny.gguf"


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) - 5000]


def _cut_header(raw: bytes) -> bytes:
    return raw[:400]


def _other_magic(raw: bytes) -> bytes:
    return b"GGML" + raw[4:]


def _version_one(raw: bytes) -> bytes:
    return raw[:4] + struct.pack("<I", 1) + raw[8:]


def _unknown_kind(raw: bytes) -> bytes:
    name = b"blk.0.ffn_up.weight"
    place = raw.index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + 4 + 16
    return raw[:place] + struct.pack("<I", 250) + raw[place + 4 :]


def _renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda raw: raw.replace(old, new)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "is truncated: tensor"),
        (_cut_header, "is truncated or damaged"),
        (_other_magic, "is no GGUF file: it begins with b'GGML'"),
        (_version_one, "GGUF version 1 is not read"),
        (_unknown_kind, "has the quantization number 250"),
        (_renamed(b"llama", b"lxxma"), "the architecture 'lxxma' is not supported"),
        (_renamed(b"ggml.tokens", b"ggml.tokenz"), "the file has no tokenizer"),
        (_renamed(b"gpt-2", b"gpt-9"), "the word splitting 'gpt-9'"),
        (_renamed(b"tokenizer.ggml.model", b"tokenizer.ggml.nodel"), "a tokenizer of kind None"),
        (_renamed(b"blk.1.attn_q.weight", b"blk.1.attn_x.weight"), "tensor blk.1.attn_q.weight is missing"),
        (_renamed(b"llama.block_count", b"llama.block_coumt"), "llama.block_count is missing"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    damage: Callable[[bytes], bytes], message: str, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.gguf").write_bytes(damage(tiny.read_bytes()))
    with pytest.raises(InputError, match=r"broken\.gguf") as error:
        convert_gguf(tmp_path / "broken.gguf", tmp_path / "hf")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hf" / "config.json").exists()


def test_a_missing_part_is_named(tiny: Path, tmp_path: Path) -> None:
    first = tmp_path / "m-00001-of-00003.gguf"
    first.write_bytes(tiny.read_bytes())
    with pytest.raises(InputError, match=r"has 3 parts, and m-00002-of-00003\.gguf and 1 more is missing"):
        GgufModel(first)


def test_parts_are_one_model(tmp_path: Path) -> None:
    for number, name in ((1, "a"), (2, "b")):
        path = tmp_path / f"m-{number:05d}-of-00002.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_tensor(name, np.full((2, 3), number, np.float32))
        _finish(writer)
    model = GgufModel(tmp_path / "m-00002-of-00002.gguf")
    assert model.names == ["a", "b"]
    assert model.read("b").tolist() == [[2.0] * 3] * 2


# All types that the package can make; it reads more, which llama.cpp alone makes.
@pytest.mark.parametrize(
    "kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "MXFP4"]
)
def test_rows_are_those_of_the_package(kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader, dequantize

    number = GGMLQuantizationType[kind]
    values = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    writer = GGUFWriter(tmp_path / "one.gguf", "llama")
    writer.add_tensor("x", quantize(values, number), raw_dtype=number)
    _finish(writer)
    stored = GGUFReader(tmp_path / "one.gguf").tensors[0]
    expected = dequantize(np.asarray(stored.data), number)
    ours = GgufFile(tmp_path / "one.gguf")
    assert ours.tensors["x"].shape == (7, 512)
    np.testing.assert_array_equal(ours.read_rows("x", 2, 5).astype(np.float32), expected[2:5])


def test_rope_scaling_of_llama3_is_recognised_and_other_divisors_are_kept() -> None:
    scaling = RopeScaling("llama3", 32.0)
    divisors = llama3_divisors(500000.0, 64, scaling)
    fields = {"context_length": 131072}

    def read(tensors: dict[str, np.ndarray]) -> Any:
        return read_rope_fields(fields, 500000.0, 64, tensors.get, "x.gguf")

    found = read({"rope_freqs.weight": divisors})
    assert (found["rope_type"], found["factor"]) == ("llama3", 32.0)
    assert found["original_max_position_embeddings"] == 8192
    other = np.linspace(1, 3, 32, dtype=np.float32)
    kept = read({"rope_freqs.weight": other})
    assert kept["rope_type"] == "longrope"
    np.testing.assert_array_equal(np.asarray(kept["long_factor"], np.float32), other)
    assert read({}) is None


def test_sentencepiece_vocabulary_gives_the_ids_of_sentencepiece(shared: Path, tmp_path: Path) -> None:
    """Llama 2's vocabulary, with scores and without merges, as llama.cpp's converter writes it."""
    from sentencepiece import SentencePieceProcessor

    theirs = SentencePieceProcessor()
    theirs.LoadFromFile(str(shared / "models" / "llama2-tokenizer" / "tokenizer.model"))
    size = theirs.GetPieceSize()
    kinds = [
        2 if theirs.IsUnknown(i) else 3 if theirs.IsControl(i) else 6 if theirs.IsByte(i) else 1
        for i in range(size)
    ]
    writer = GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([theirs.IdToPiece(i) for i in range(size)])
    writer.add_token_scores([theirs.GetScore(i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    _finish(writer)
    write_tokenizer(GgufModel(tmp_path / "vocabulary.gguf"), tmp_path / "hf")
    ours = load_tokenizer(tmp_path / "hf")
    assert (ours.bos_id, ours.eos_id) == (1, 2)
    for text in TEXTS + TRAPS:
        assert ours.encode(text).tolist() == theirs.EncodeAsIds(text), text
        assert ours.decode(ours.encode(text)) == theirs.DecodeIds(ours.encode(text).tolist())


def test_byte_level_splitting_is_what_the_name_says(tiny: Path, tmp_path: Path) -> None:
    """Digits, composed characters and whole words, which transformers' converter leaves out."""
    found = {}
    for name in ("smollm", "llama-bpe", "qwen2"):
        model = GgufModel(tiny)
        model.metadata = {**model.metadata, "tokenizer.ggml.pre": name}
        write_tokenizer(model, tmp_path / name)
        found[name] = json.loads((tmp_path / name / "tokenizer.json").read_text())
    assert found["smollm"]["pre_tokenizer"]["pretokenizers"][0] == {
        "type": "Digits",
        "individual_digits": True,
    }
    assert found["llama-bpe"]["model"]["ignore_merges"] is True
    assert found["qwen2"]["normalizer"] == {"type": "NFC"}


def _finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
