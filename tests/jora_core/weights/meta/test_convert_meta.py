"""Models in Meta's layout against the models of transformers that they were made from."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex
import torch

from flows.commands.models.convert_file import convert_file
from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.model_sources import source_files, source_kind
from jora_core.weights.gguf.pre_tokenizers import PRE_TOKENIZERS
from jora_core.weights.meta.convert_meta import convert_meta
from jora_core.weights.meta.tokenizer import write_meta_tokenizer
from tests.jora_core.family_cases import their_logits
from tests.jora_core.weights.gguf.gguf_cases import TEXTS
from tests.jora_core.weights.meta.meta_cases import rank_list, sentencepiece_model, tiny_llama, write_meta

ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 8192}


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return their_logits(model.eval(), tokens)


@pytest.mark.parametrize(
    ("shards", "changes", "params"),
    [
        (1, {"tie_word_embeddings": True}, {}),
        (2, {"tie_word_embeddings": False}, {}),
        # As Llama 3.1: the vocabulary is split instead of the width.
        (2, {"tie_word_embeddings": False, "rope_theta": 500000.0, "rope_scaling": ROPE}, {"axis": 0}),
    ],
)
def test_logits_are_those_of_the_source(
    shards: int, changes: dict[str, Any], params: dict[str, Any], tmp_path: Path
) -> None:
    source = tmp_path / "meta"
    rows = sentencepiece_model(source)
    rows += rows % 2  # a row without a token, so that two devices have equal shares
    model = tiny_llama(tmp_path / "hf", rows, **changes)
    given = {"rope_theta": 500000.0, "use_scaled_rope": True} if "rope_scaling" in changes else {}
    write_meta(source, model, shards, params.get("axis", 1), **given)
    assert source_kind(source) == "meta"
    digests = convert_meta(source, tmp_path / "out")
    tokens = np.random.default_rng(0).integers(0, rows, (2, 40), dtype=np.int32)
    # The same weights in the same program: no difference is rounding.
    np.testing.assert_array_equal(logits(tmp_path / "out", tokens), their_logits(model, tokens))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] == changes["tie_word_embeddings"]
    assert ("lm_head.weight" in digests) != changes["tie_word_embeddings"]
    assert config["max_position_embeddings"] == (131072 if given else 4096)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_bfloat16_stays_and_the_folder_is_checked(tmp_path: Path) -> None:
    """`jora convert DIR NEW`: the conversion in a child process, and the check of all digests."""
    source = tmp_path / "meta"
    rows = sentencepiece_model(source)
    rows += rows % 2
    model = tiny_llama(tmp_path / "hf", rows, tie_word_embeddings=False)
    write_meta(source, model, 2, dtype=torch.bfloat16)
    (source / "LICENSE").write_text("terms")
    result = convert_file(source, tmp_path / "out")
    assert result["converted_from"] == "meta" and (tmp_path / "out" / "LICENSE").read_text() == "terms"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    tokens = np.arange(40, dtype=np.int32)[None]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    np.testing.assert_array_equal(logits(tmp_path / "out", tokens), their_logits(model, tokens))
    assert set(source_files(source)) == {
        f"model/{name}"
        for name in ("consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model")
    }


def test_sentencepiece_tokenizer(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    rows = sentencepiece_model(tmp_path / "meta")
    theirs = SentencePieceProcessor(model_file=str(tmp_path / "meta" / "tokenizer.model"))
    write_meta_tokenizer(tmp_path / "meta", tmp_path / "out", rows, False)
    ours = load_tokenizer(tmp_path / "out", rows)
    for text in [*TEXTS, "  two spaces", "</s> is text", "🙂 x\n\n\ty"]:
        assert ours.encode(text).tolist() == theirs.encode(text), text


def merged_by_rank(text: str, ranks: dict[bytes, int]) -> list[int]:
    """The tokens of a text by the rule of tiktoken: join the pair of the lowest rank, the leftmost first."""
    found = []
    for word in regex.findall(PRE_TOKENIZERS["llama-bpe"].regex, text):
        whole = word.encode()
        if whole in ranks:
            found.append(ranks[whole])
            continue
        parts = [bytes([byte]) for byte in whole]
        while True:
            pairs = [(ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(pairwise(parts))]
            rank, at = min(pairs, default=(1 << 30, 0))
            if rank == 1 << 30:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        found += [ranks[part] for part in parts]
    return found


@pytest.mark.parametrize("newer", [False, True])
def test_rank_list_tokenizer(newer: bool, tmp_path: Path) -> None:
    """Llama 3's: 256 bytes and some longer sequences, one of which no merge makes."""
    more = [b" t", b"he", b" the", b"at", b" m", b" cat", b"12", "é".encode(), "Gr\u00fc".encode(), b"\n\n"]
    tokens = [bytes([byte]) for byte in range(256)] + more
    rank_list(tmp_path / "meta", tokens)
    rows = len(tokens) + 256
    write_meta_tokenizer(tmp_path / "meta", tmp_path / "out", rows, newer)
    ours = load_tokenizer(tmp_path / "out", rows)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    for text in [*TEXTS, "the cat the CAT's 12345", "Gr\u00fc Gr\u00fcn", "<|eot_id|>"]:
        assert ours.encode(text).tolist() == merged_by_rank(text, ranks), text
        assert ours.decode(ours.encode(text)) == text
    begin = len(tokens)
    assert (ours.bos_id, ours.eos_id) == (begin, begin + 1)
    assert ours.controls["<|start_header_id|>"] == begin + 6 and ours.controls["<|eot_id|>"] == begin + 9
    names = ("<|eom_id|>", "<|python_tag|>") if newer else ("<|reserved_special_token_4|>",) * 2
    assert ours.controls[names[0]] == begin + 8 and names[1] in ours.controls
    assert ours.controls[f"<|reserved_special_token_{247 if newer else 250}|>"] == begin + 255
    ends = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert ends[:2] == [begin + 1, begin + 9]


def broken_pickle(folder: Path) -> None:
    (folder / "consolidated.00.pth").write_bytes(b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00id\x85R.")


def without_a_part(folder: Path) -> None:
    (folder / "consolidated.00.pth").unlink()


def more_heads(folder: Path) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"n_kv_heads": 4}))


def quantized(folder: Path) -> None:
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {"quantization_args": {"group_size": 32}}))


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def other_norms(folder: Path) -> None:
    path = folder / "consolidated.01.pth"
    part = torch.load(path)
    torch.save(part | {"norm.weight": part["norm.weight"] + 1}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (broken_pickle, "cannot be loaded as weights alone"),
        (without_a_part, r"consolidated\.00\.pth is missing"),
        (
            more_heads,
            r"layers\.0\.attention\.wk\.weight has shape \(32, 64\) in all files together, expected",
        ),
        (quantized, "quantization_args is not supported"),
        (without_tokenizer, r"has no tokenizer\.model; copy it there"),
        (other_norms, r"the files have different values of norm\.weight"),
    ],
)
def test_one_line_for_what_cannot_be_read(damage: Any, said: str, tmp_path: Path) -> None:
    source = tmp_path / "meta"
    rows = sentencepiece_model(source)
    rows += rows % 2
    write_meta(source, tiny_llama(tmp_path / "hf", rows, tie_word_embeddings=False), 2)
    damage(source)
    with pytest.raises(InputError, match=said) as error:
        convert_meta(source, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_torch_is_asked_for_where_it_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "meta"
    rows = sentencepiece_model(source)
    write_meta(source, tiny_llama(tmp_path / "hf", rows, tie_word_embeddings=True))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="run `pip install torch`, or take the model in Hugging Face layout"):
        convert_meta(source, tmp_path / "out")
