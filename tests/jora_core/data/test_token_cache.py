"""The token cache: the same groups with and without it, nothing tokenised twice, nothing damaged trusted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from jora_core.data import token_cache
from jora_core.data.examples import TrainData, load_groups
from jora_core.data.tokenizer import TextTokenizer, load_tokenizer
from jora_core.specs.data import DataSpec
from jora_core.specs.prompts.settings import PromptSpec
from tests.jora_core.trees import listed


def flat(data: TrainData) -> list[tuple]:
    return [
        (
            side,
            group.ids,
            listed(group),
        )
        for side, groups in (("train", data.train), ("validation", data.validation))
        for group in groups
    ]


def counting(tokenizer: TextTokenizer, texts: list[str]) -> TextTokenizer:
    """The same tokenizer, noting what it is given."""

    def encode_many(many: list[str]) -> list[list[int]]:
        texts.extend(many)
        return tokenizer.encode_many(many)

    return dataclasses.replace(tokenizer, encode_many=encode_many)


@pytest.fixture()
def spec(alpaca_rows, write_rows, tmp_path) -> DataSpec:
    records = write_rows(tmp_path / "records.parquet", alpaca_rows(contexts=30, lines=12))
    return DataSpec(
        records=records,
        max_seq_len=128,
        tokens_per_batch=512,
        validation_share=0.2,
        cache_dir=tmp_path / "cache",
    )


def files(spec: DataSpec) -> list[Path]:
    assert spec.cache_dir is not None
    return sorted(spec.cache_dir.iterdir())


def test_groups_are_the_same_and_the_second_start_tokenises_nothing(tiny_model, spec):
    tokenizer = load_tokenizer(tiny_model)
    without = load_groups(spec.model_copy(update={"cache_dir": None}), tokenizer)
    assert without.counts["shortened"] > 0 and without.validation
    first = load_groups(spec, tokenizer)
    assert flat(first) == flat(without) and first.counts == without.counts
    assert [path.suffix for path in files(spec)] == [".arrow", ".sha256"]

    roomy = spec.model_copy(update={"max_seq_len": 512})
    asked: list[str] = []
    # The length limit, validation and sharing are applied after the cache: no key of their own.
    second = load_groups(roomy.model_copy(update={"validation_share": 0.5}), counting(tokenizer, asked))
    assert second.counts["shortened"] == 0 and not asked
    assert len(files(spec)) == 2
    third = load_groups(spec, counting(tokenizer, asked))
    assert flat(third) == flat(without)
    assert 0 < len(asked) < 60 * first.counts["shortened"], "only what is shortened is tokenised again"


def test_weighted_text_comes_back_in_its_pieces(tiny_model, write_rows, tmp_path):
    segments = [
        {"text": "river copper", "weight": 0.5},
        {"text": "", "weight": 1.0},
        {"text": " seven", "weight": 1.0},
    ]
    suffixes = [[{"text": " lamp", "weight": 0.0}, {"text": " bread", "weight": 1.0}], []]
    rows = [
        {"id": str(i), "segments": segments[: 1 + i % 3], "suffixes": suffixes[: i % 3]} for i in range(9)
    ]  # fmt: skip
    spec = DataSpec(records=write_rows(tmp_path / "r.parquet", rows), max_seq_len=64, tokens_per_batch=256)
    tokenizer = load_tokenizer(tiny_model)
    without = load_groups(spec, tokenizer)
    cached = spec.model_copy(update={"cache_dir": tmp_path / "cache"})
    assert flat(load_groups(cached, tokenizer)) == flat(without)
    asked: list[str] = []
    assert flat(load_groups(cached, counting(tokenizer, asked))) == flat(without) and not asked


@pytest.mark.parametrize("damage", ["bit", "cut", "digest", "no digest"])
def test_a_damaged_file_is_made_again(tiny_model, spec, damage, caplog):
    tokenizer = load_tokenizer(tiny_model)
    good = flat(load_groups(spec, tokenizer))
    data, digest = files(spec)
    content = data.read_bytes()
    if damage == "bit":
        ids = good[0][2][0][0][1:9]
        at = content.index(np.asarray(ids, np.int32).tobytes())
        data.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    elif damage == "cut":
        data.write_bytes(content[: len(content) // 2])
    elif damage == "digest":
        digest.write_bytes(b"\xff\xfe")
    else:
        digest.unlink()
    asked: list[str] = []
    assert flat(load_groups(spec, counting(tokenizer, asked))) == good
    assert asked and data.read_bytes() == content and len(files(spec)) == 2
    assert f"{data}: damaged, or without its digest" in caplog.text


def test_what_decides_the_tokens_decides_the_key(tiny_model, spec, alpaca_rows, write_rows):
    tokenizer = load_tokenizer(tiny_model)
    load_groups(spec, tokenizer)
    for number, (changes, other) in enumerate(
        [
            ({"prompt": PromptSpec(template="{instruction} {input} ")}, tokenizer),
            ({"tasks": ["threads"]}, tokenizer),
            ({"max_records": 20}, tokenizer),
            ({}, dataclasses.replace(tokenizer, digest="of another tokenizer")),
        ],
        start=2,
    ):
        load_groups(spec.model_copy(update=changes), other)
        assert len(files(spec)) == 2 * number, changes
    write_rows(spec.records, alpaca_rows(contexts=31, lines=12))
    assert load_groups(spec, tokenizer).counts["records"] == 93
    assert len(files(spec)) == 12


def test_a_kill_while_writing_leaves_no_file(tiny_model, spec, monkeypatch):
    tokenizer = load_tokenizer(tiny_model)

    def broken(many: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_groups(spec, dataclasses.replace(tokenizer, encode_many=broken))
    assert files(spec) == []


def test_a_large_file_shows_its_progress(tiny_model, spec, monkeypatch, capsys):
    monkeypatch.setattr(token_cache, "_BAR_ROWS", 90)
    load_groups(spec, load_tokenizer(tiny_model))
    assert "tokenise: 90 of 90" in capsys.readouterr().err
