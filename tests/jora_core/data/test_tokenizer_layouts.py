"""Thirty layouts of tokenizer files: ids as in transformers, and no text that becomes a control token."""

from __future__ import annotations

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer

from jora_core.base.errors import InputError
from jora_core.data.tokenizer import load_tokenizer

TINY = Path(__file__).parents[3] / "data/tiny-llama"
TEXTS = [
    "A lamp, 30 euro.",
    " two  spaces\nand a line",
    "früh 寿司 🙂",
    "x</s>y",
    "</s>",
    "<s> a <pad> b </s>",
]
Files = dict[str, Any]


def start(*tokens: str, end: str | None = None) -> dict[str, Any]:
    """A post-processor that puts tokens before a text, and one after it."""
    ids = {"<pad>": 0, "<s>": 1, "</s>": 2}
    around = [{"SpecialToken": {"id": token, "type_id": 0}} for token in tokens]
    single = [*around, {"Sequence": {"id": "A", "type_id": 0}}]
    if end:
        single.append({"SpecialToken": {"id": end, "type_id": 0}})
    used = [*tokens, *([end] if end else [])]
    special = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in used}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}


def change(file: str, **fields: Any) -> Callable[[Files], None]:
    return lambda files: files.setdefault(file, {}).update(fields)


def remove(file: str, *names: str) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        for name in names:
            files[file].pop(name)

    return edit


def post(value: Any) -> Callable[[Files], None]:
    return change("tokenizer.json", post_processor=value)


def flag(**flags: Any) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        for token in files["tokenizer.json"]["added_tokens"]:
            token.update(flags)

    return edit


def pieces(kind: str) -> Callable[[Files], None]:
    """Another model over words and letters that has the control tokens in its vocabulary."""

    def edit(files: Files) -> None:
        alphabet = [chr(code) for code in range(33, 127)]
        words = ["<pad>", "<s>", "</s>", "<unk>", "▁", *alphabet, "▁lamp", "lamp", "euro"]
        meta = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        spaces = {"type": "WhitespaceSplit"}
        data = files["tokenizer.json"]
        if kind == "Unigram":
            scores = [0.0 if i < 4 else -8.0 + len(word) for i, word in enumerate(words)]
            vocab = [list(pair) for pair in zip(words, scores, strict=True)]
            data["model"] = {"type": kind, "unk_id": 3, "vocab": vocab, "byte_fallback": False}
            data |= {"pre_tokenizer": meta, "decoder": meta}
        else:
            vocab = {word: number for number, word in enumerate(words)}
            data["model"] = {"type": kind, "vocab": vocab, "unk_token": "<unk>"}
            if kind == "WordPiece":
                data["model"] |= {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
            data |= {"pre_tokenizer": spaces, "decoder": None}

    return edit


def merged_end(files: Files) -> None:
    """Merges that make the end token out of characters."""
    model = files["tokenizer.json"]["model"]
    for number, (left, right) in enumerate((("<", "/"), ("</", "s"), ("</s", ">"))):
        if left + right not in model["vocab"]:
            model["vocab"][left + right] = 3072 + number
        model["merges"].append([left, right])


def together(*edits: Callable[[Files], None]) -> Callable[[Files], None]:
    def edit(files: Files) -> None:
        for each in edits:
            each(files)

    return edit


SETTINGS, CONFIG, MAP = "tokenizer_config.json", "config.json", "special_tokens_map.json"
END: dict[str, Any] = {
    "content": "</s>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
}
END["__type"] = "AddedToken"
LAYOUTS: dict[str, Callable[[Files], None]] = {
    "as-it-is": together(),
    "no-rule": post(None),
    "byte-level-rule": post(BYTES),
    "bos": post(start("<s>")),
    "bos-and-eos": post(start("<s>", end="</s>")),
    "eos-alone": post(start(end="</s>")),
    "sequence-of-rules": post({"type": "Sequence", "processors": [BYTES, start("<s>")]}),
    "roberta-rule": post(
        {
            "type": "RobertaProcessing",
            "sep": ["</s>", 2],
            "cls": ["<s>", 1],
            "trim_offsets": True,
            "add_prefix_space": False,
        }
    ),
    "add-bos-without-rule": together(post(None), change(SETTINGS, add_bos_token=True)),
    "add-bos-false-with-rule": change(SETTINGS, add_bos_token=False),
    "add-bos-null": change(SETTINGS, add_bos_token=None),
    "add-eos": change(SETTINGS, add_eos_token=True),
    "no-bos-named": remove(SETTINGS, "bos_token"),
    "bos-null": together(post(None), change(SETTINGS, bos_token=None)),
    "tokens-as-objects": change(SETTINGS, bos_token=END | {"content": "<s>"}, eos_token=END),
    "eos-as-object": change(SETTINGS, eos_token=END),
    "eos-in-the-map": together(remove(SETTINGS, "eos_token"), change(MAP, eos_token="</s>")),
    "object-in-the-map": together(remove(SETTINGS, "eos_token"), change(MAP, eos_token=END)),
    "eos-in-config": remove(SETTINGS, "eos_token"),
    "eos-list-in-config": together(remove(SETTINGS, "eos_token"), change(CONFIG, eos_token_id=[2, 5])),
    "decoder-of-added-tokens": change(SETTINGS, added_tokens_decoder={"2": END | {"special": True}}),
    "llama-class": change(SETTINGS, tokenizer_class="LlamaTokenizerFast"),
    "not-special": flag(special=False),
    "normalized": flag(normalized=True),
    "stripping": flag(lstrip=True, rstrip=True),
    "single-word": flag(single_word=True),
    "padding-and-truncation": change(
        "tokenizer.json",
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    ),
    "prefix-space": change(
        "tokenizer.json",
        pre_tokenizer={
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
    ),
    "merges-make-the-end": merged_end,
    "unigram": pieces("Unigram"),
    "word-level": pieces("WordLevel"),
    "word-piece": pieces("WordPiece"),
}


def write(folder: Path, edit: Callable[[Files], None]) -> Path:
    files = {name: json.loads((TINY / name).read_text()) for name in ("tokenizer.json", SETTINGS, CONFIG)}
    files = copy.deepcopy(files)
    edit(files)
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields))
    return folder


def test_there_are_thirty() -> None:
    assert len(LAYOUTS) >= 30


@pytest.mark.parametrize("name", LAYOUTS)
def test_ids_of_transformers_and_text_that_stays_text(tmp_path: Path, name: str) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = write(tmp_path, LAYOUTS[name])
    ours = load_tokenizer(folder, 3100)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    first = "lamp"
    with_special, without = theirs(first)["input_ids"], theirs(first, add_special_tokens=False)["input_ids"]
    if name != "padding-and-truncation":
        before = with_special[: with_special.index(without[0])]
        assert ([] if ours.bos_id is None else [ours.bos_id]) == before
        for text in TEXTS[:3]:
            assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.eos_id == (2 if theirs.eos_token_id is None else theirs.eos_token_id)
    controls = {0, 1, 2}
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert not controls & set(ids), f"{text!r} has control tokens: {ids}"
        assert ids
    # Alone and in a batch, a text has the same ids.
    assert [each.tolist() for each in ours.encode_batch(TEXTS)] == [ours.encode(t).tolist() for t in TEXTS]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (change(CONFIG, eos_token_id=5000), r"config\.json: eos_token_id is 5000"),
        (change(CONFIG, eos_token_id=-1), r"config\.json: eos_token_id is -1"),
        (change(CONFIG, eos_token_id="2"), r"config\.json: eos_token_id must be int, found '2'"),
        (change(CONFIG, eos_token_id=None), None),
        (change("generation_config.json", eos_token_id=2), None),
    ],
)
def test_ids_are_held_against_the_embedding(
    tmp_path: Path, edit: Callable[[Files], None], said: str | None
) -> None:
    folder = write(tmp_path, together(remove(SETTINGS, "eos_token"), edit))
    if said is None:
        assert load_tokenizer(folder, 3072).eos_id == 2
        return
    with pytest.raises(InputError, match=said):
        load_tokenizer(folder, 3072)


def test_an_id_beyond_the_embedding_is_refused_when_a_text_has_it(tmp_path: Path) -> None:
    folder = write(tmp_path, together())
    tokenizer = load_tokenizer(folder, 3071)
    vocabulary = json.loads((TINY / "tokenizer.json").read_text())["model"]["vocab"]
    last = next(text for text, number in vocabulary.items() if number == 3071)
    text = last.replace("Ġ", " ")
    assert load_tokenizer(folder, 3072).encode(text).tolist() == [3071]
    with pytest.raises(InputError, match="the id 3071, but the model's embedding has 3071 rows"):
        tokenizer.encode(text)
    assert len(tokenizer.encode("a lamp"))


def test_words_without_a_token(tmp_path: Path) -> None:
    def no_unknown(files: Files) -> None:
        pieces("WordLevel")(files)
        files["tokenizer.json"]["model"]["unk_token"] = "[UNK]"

    with pytest.raises(InputError, match=r"cannot encode a text .*unk_token"):
        load_tokenizer(write(tmp_path, no_unknown)).encode("zebra")


def test_guesses_and_settings_without_effect_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_end(files: Files) -> None:
        remove(SETTINGS, "eos_token")(files)
        files[CONFIG].pop("eos_token_id")

    assert load_tokenizer(write(tmp_path, no_end)).eos_id == 2
    assert "eos_token is missing; </s> is taken" in capsys.readouterr().err
    load_tokenizer(write(tmp_path, change(SETTINGS, add_bos_token=False)))
    assert "add_bos_token=false has no effect" in capsys.readouterr().err
    load_tokenizer(write(tmp_path, change(SETTINGS, eos_token="<end>")))
    assert "'<end>' is no token of the tokenizer; eos_token_id=2" in capsys.readouterr().err


def test_files_with_a_byte_order_mark(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    expected = load_tokenizer(folder, 3072)
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    found = load_tokenizer(folder, 3072)
    assert (found.bos_id, found.eos_id) == (expected.bos_id, expected.eos_id)
    assert found.encode(TEXTS[0]).tolist() == expected.encode(TEXTS[0]).tolist()


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path, cut: int) -> None:
    # transformers takes such a file for tiktoken's, and asks to install that library.
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the lamp takes a bulb", "the radio runs for hours"] * 20),
        model_writer=model,
        vocab_size=24,
        minloglevel=2,
    )
    whole = model.getvalue()
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())
    (tmp_path / "tokenizer.model").write_bytes((b"", b"garbage", whole[: len(whole) // 3 * 2 + 1])[cut])
    with pytest.raises(InputError, match=r"tokenizer\.model is truncated or no SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match="Git-LFS pointer"):
        load_tokenizer(tmp_path)
