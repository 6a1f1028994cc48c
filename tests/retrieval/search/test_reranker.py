"""Reranking with a real cross-encoder class: a tiny random one, made here from its configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jora_core.base.errors import InputError
from retrieval.build.build import build_record_files
from retrieval.build.inputs import input_digests
from retrieval.build.record_files import read_rankings, read_records
from retrieval.search.reranker import Reranker, load_reranker
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask, ThreadsTask
from tests.retrieval.conftest import NAMES, TOPICS


def make_cross_encoder(folder: Path, labels: int) -> Path:
    """A two-layer BERT with random weights and a tokenizer of the fixtures' words."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TOPICS, *[n.lower() for n in NAMES], *map(str, range(60))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    set_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(words), num_labels=labels, initializer_range=1.0, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cross_encoder(tmp_path_factory.mktemp("cross-encoder"), 1)


def test_the_first_are_ordered_by_the_model_and_the_rest_stay(cross_encoder: Path) -> None:
    reranker = load_reranker(str(cross_encoder))
    texts = [f"{NAMES[i % 6]} has a {TOPICS[i % 9]} {i}" for i in range(12)]
    ranking = np.array([7, 3, 9, 1, 11, 5, 0, 2])
    question = "whose kettle 7"
    scores = {p: float(reranker.model.predict([(question, texts[p])])[0]) for p in ranking.tolist()}
    assert len({round(score, 4) for score in scores.values()}) == 8, "scores that do not differ prove nothing"
    found = reranker.rerank(question, ranking, texts.__getitem__, 5)
    assert found.tolist() == sorted([7, 3, 9, 1, 11], key=lambda p: -scores[p]) + [5, 0, 2]
    assert found.tolist() != ranking.tolist()
    for depth in (0, 1):
        assert reranker.rerank(question, ranking, texts.__getitem__, depth).tolist() == ranking.tolist()
    assert sorted(reranker.rerank(question, ranking, texts.__getitem__, 99)) == sorted(ranking)


def test_ties_keep_their_order_and_no_number_comes_last() -> None:
    class Model:
        def predict(self, pairs: list[tuple[str, str]], **options: Any) -> np.ndarray:
            return np.array([0.5, float("nan"), 0.500000001, 0.7], dtype=np.float32)[: len(pairs)]

    reranker = Reranker("x", Model())
    assert reranker.rerank("q", np.array([4, 2, 1, 3]), str, 4).tolist() == [3, 4, 1, 2]


def test_records_hold_what_the_reranker_puts_first(
    cross_encoder: Path, qa_files: tuple[Path, Path], threads_file: Path, tmp_path: Path
) -> None:
    documents, questions = qa_files
    config = ContextConfig(
        reranker=str(cross_encoder),
        test_share=0.4,
        threads=ThreadsTask(source=str(threads_file), legs=["bm25", "recency"], n_contexts=3, rerank_depth=6),
        qa=QaTask(source=str(documents), questions=str(questions), legs=["bm25"], rerank_depth=8),
    )
    metrics = build_record_files(config, tmp_path / "one")
    build_record_files(config.model_copy(update={"shard_records": 7, "workers": 2}), tmp_path / "two")
    read = {name: read_rankings(tmp_path / name / "rankings.parquet") for name in ("one", "two")}
    assert read["one"] == read["two"]
    rankings = {row["id"]: row for row in read["one"]}
    moved = 0
    for record in read_records(tmp_path / "one" / "records.parquet", split="test"):
        row, depth = rankings[record["id"]], 6 if record["task"] == "threads" else 8
        assert sorted(row["reranked"][:depth]) == sorted(row["fused"][:depth])
        assert row["reranked"][depth:] == row["fused"][depth:]
        assert set(record["context_ids"]) == set(row["reranked"][:3])
        moved += set(row["reranked"][:3]) != set(row["fused"][:3])
    assert moved > 0, "a reranker that changes no prompt proves nothing"
    for task in ("threads", "qa"):
        assert metrics["tasks"][task]["retrieval"]["test"]["reranked"]["n"] > 0
    assert "reranker/config.json" in input_digests(config)


def test_a_window_is_reranked_for_the_report_alone(
    cross_encoder: Path, threads_file: Path, tmp_path: Path
) -> None:
    task = ThreadsTask(
        source=str(threads_file), legs=["bm25", "recency"], contexts="window", n_contexts=3, rerank_depth=6
    )
    plain = ContextConfig(test_share=0.4, threads=task.model_copy(update={"rerank_depth": 0}))
    build_record_files(plain, tmp_path / "plain")
    config = ContextConfig(test_share=0.4, reranker=str(cross_encoder), threads=task)
    metrics = build_record_files(config, tmp_path / "reranked")["tasks"]["threads"]
    records = [read_records(tmp_path / name / "records.parquet") for name in ("plain", "reranked")]
    assert records[0] == records[1]
    assert metrics["retrieval"]["test"]["reranked"] != metrics["retrieval"]["test"]["fused"]


def test_what_is_no_reranker_is_refused(tiny_embedder: Path, tmp_path: Path) -> None:
    for model, said in (
        (str(tmp_path), "holds no config.json"),
        (str(tmp_path / "nowhere"), "reranker: folder .*nowhere does not exist"),
        (str(make_cross_encoder(tmp_path / "two", 2)), "gives 2 scores for each pair; expected one"),
    ):
        with pytest.raises(InputError, match=said):
            load_reranker(model)
    qa = QaTask(source="d.jsonl", questions="q.jsonl", legs=["bm25"])
    with pytest.raises(ValueError, match=r"qa\.rerank_depth is set but no reranker is"):
        ContextConfig(qa=qa.model_copy(update={"rerank_depth": 5}))
    with pytest.raises(ValueError, match="no task's rerank_depth is"):
        ContextConfig(qa=qa, reranker=str(tiny_embedder))
