"""Texts that an embedder reads in part are counted and said, whatever its limit is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retrieval.build.build import build_record_files
from retrieval.evaluation.build_messages import CUT_BY_EMBEDDER
from retrieval.search.dense.embedder import Embedder, load_embedder
from retrieval.settings.context import ContextConfig
from retrieval.settings.tasks import QaTask

WORDS = ["lamp", "kettle", "river", "copper", "seven", "euro", "costs", "what", "the"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers model whose every word is a token; it adds two of its own, and reads 24."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *map(str, range(60))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    set_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **shape)).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    network = Transformer(str(folder), max_seq_length=24)
    model = SentenceTransformer(modules=[network, Pooling(16)], device="cpu")
    model.save(str(folder / "whole"))
    return folder / "whole"


def text(words: int) -> str:
    return " ".join(WORDS[i % len(WORDS)] for i in range(words))


@pytest.mark.parametrize("limit", [8, 24, 63])
def test_texts_longer_than_the_limit_are_counted(bert: Path, limit: int) -> None:
    embedder = load_embedder(str(bert), "qa.legs")
    embedder.model.max_seq_length = limit
    lengths = [0, 1, limit - 3, limit - 2, limit - 1, limit, 200, 200]
    texts = [text(length) for length in lengths]
    # A word is a token, and the tokenizer adds two.
    assert embedder.count_cut(texts) == sum(length + 2 > limit for length in lengths) == 4
    assert embedder.count_cut([]) == 0
    # What is counted is what the model does not see.
    longer = [text(limit - 2), f"{text(limit - 2)} the", f"{text(limit - 3)} the"]
    same, cut, other = embedder.encode(longer)
    assert abs(same - cut).max() < 1e-5 < abs(same - other).max()


def test_long_words_and_signs_of_a_few_bytes_are_measured_in_tokens(bert: Path) -> None:
    embedder = load_embedder(str(bert), "qa.legs")
    # Many characters and one token; and as many tokens as the model reads, and one more.
    assert embedder.count_cut(["x" * 10_000, "第 " * 22, "第 " * 23]) == 1


@pytest.mark.parametrize("limit", [None, float("inf"), 0])
def test_a_model_of_single_words_reads_all(tiny_embedder: Path, limit: float | None) -> None:
    embedder = load_embedder(str(tiny_embedder), "qa.legs")
    assert embedder.count_cut(["lamp " * 5000]) == 0

    class NoLimit:
        max_seq_length = limit

    assert Embedder("x", NoLimit()).count_cut(["lamp " * 5000]) == 0


def test_a_build_says_how_many_documents_are_cut(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [5, 80, 10, 22, 23, 300]
    rows = [{"id": i, "text": f"{i} {text(length - 1)}"} for i, length in enumerate(lengths)]
    asked = [
        {"id": i, "document_id": i, "question": f"what costs {i}", "answers": ["lamp"]}
        for i in range(len(rows))
    ]
    for name, found in (("docs.jsonl", rows), ("asked.jsonl", asked)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in found))
    task = QaTask(
        source=str(tmp_path / "docs.jsonl"),
        questions=str(tmp_path / "asked.jsonl"),
        legs=["bm25", "dense"],
        n_contexts=2,
    )
    config = ContextConfig(test_share=0.3, near_duplicates="off", embedder=str(bert), qa=task)
    report = build_record_files(config, tmp_path / "out")
    assert report["tasks"]["qa"]["read"][CUT_BY_EMBEDDER] == 3
