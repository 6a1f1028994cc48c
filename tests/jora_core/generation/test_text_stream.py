"""Text that comes in pieces is the text that comes at once, whatever the tokens, up to a stop string."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jora_core.data.tokenizer import TextTokenizer, load_tokenizer
from jora_core.generation.text_stream import TextStream

TEXT = "Zwölf Boxkämpfer, 東京 🙂🏳️‍🌈 \n\n and two  spaces — ok"


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece-like"])
def tokenizer(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> TextTokenizer:
    """A byte-level tokenizer as of Llama 3 and Qwen, and one with byte fallback as of Llama 2 and Gemma."""
    if request.param == "byte-level":
        return load_tokenizer(tiny_model)
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary = {token: i for i, token in enumerate(["</s>", "▁", *"abcdefghijklmnopqrstuvwxyz", "ö", "▁t"])}
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    made = Tokenizer(models.BPE(vocabulary, [("▁", "t")], byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    folder = tmp_path_factory.mktemp("fallback")
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    return load_tokenizer(folder)


def pieces_of(stream: TextStream, ids: list[int], cut: int = 1) -> list[str]:
    return [stream.add(ids[i : i + cut]) for i in range(0, len(ids), cut)] + [stream.finish()]


@pytest.mark.parametrize("cut", [1, 5])
def test_pieces_are_the_text(tokenizer: TextTokenizer, cut: int) -> None:
    ids = tokenizer.encode(TEXT).tolist()
    assert len(ids) > len(TEXT)  # characters of several tokens
    stream = TextStream(tokenizer)
    pieces = pieces_of(stream, ids, cut)
    assert "".join(pieces) == stream.text == tokenizer.decode(ids) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert stream.tokens == len(ids) and not stream.stopped
    # As it comes, not all at the end.
    assert len("".join(pieces[:-1])) >= len(TEXT) - 1


def test_a_text_that_ends_within_a_character(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("ok 🙂").tolist()[:-1]
    stream = TextStream(tokenizer)
    pieces = pieces_of(stream, ids)
    assert "\ufffd" not in "".join(pieces[:-1]) and "\ufffd" in pieces[-1]
    assert stream.text == tokenizer.decode(ids)


def test_bytes_that_are_no_text(tokenizer: TextTokenizer) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(50)]
        stream = TextStream(tokenizer, ["\ufffd never \ufffd"])
        assert "".join(pieces_of(stream, ids)) == stream.text
        assert stream.tokens == 50 and stream.text


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (["東京"], "Zwölf Boxkämpfer, "),
        (["kämpfer, 東"], "Zwölf Box"),
        (["none", "\n\n"], "Zwölf Boxkämpfer, 東京 🙂🏳️‍🌈 "),
        (["x", "Boxkä"], "Zwölf Bo"),  # the one that is complete first
        (["Boxkä", "kä"], "Zwölf "),  # complete together: the longer
        (["Z"], ""),
        (["okay", "k!"], TEXT),  # begun at the end, never complete
        (["ok"], TEXT[:-2]),
    ],
)
def test_stop_strings(tokenizer: TextTokenizer, stop: list[str], left: str) -> None:
    ids = tokenizer.encode(TEXT).tolist()
    for cut in (1, 4, len(ids)):
        stream = TextStream(tokenizer, stop)
        pieces = pieces_of(stream, ids, cut)
        assert "".join(pieces) == stream.text == left
        assert stream.stopped == (left != TEXT)
        assert stream.tokens <= len(ids) and (stream.stopped or stream.tokens == len(ids))


def test_a_stop_string_in_the_last_bytes(tokenizer: TextTokenizer) -> None:
    """Held back as an incomplete character, it is found when no more tokens come."""
    ids = tokenizer.encode("ok 🙂").tolist()[:-1]
    stream = TextStream(tokenizer, [" \ufffd"])
    assert "".join(pieces_of(stream, ids)) == "ok" and stream.stopped
