"""Fit the base model's tokenizer on generated text: `python data/make_tokenizer.py [--output
data/tiny-llama]`.

Byte-level BPE (every text can be written, whatever its script) with one addition to the usual splitting: a
post's number, such as `#12`, is one piece, so that naming a post is one token.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import lexicon as lex
from make_base_corpus import base_texts
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 3072
SPLIT = r" ?#\d+| ?\p{L}+| ?\d+| ?[^\s\p{L}\d]+|\s+"
SPECIAL = ["<pad>", "<s>", "</s>"]


def fit_tokenizer(texts: Iterator[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocab_size` pieces; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def word_lists() -> Iterator[str]:
    """Every word of the lexicon with and without a space before it, often enough to become one piece."""
    words = {word for topic in lex.TOPICS.values() for word in topic} | set(lex.ASSOCIATES.values())
    words |= set(lex.ADJECTIVES) | set(lex.NAMES) | set(lex.PLACES) | set(lex.TOPICS) | set(lex.UNITS)
    words |= {str(number) for number in range(100)}
    for _ in range(40):
        yield " " + " ".join(sorted(words))
    labels = [f"#{number} {name}" for number in range(1, 33) for name in lex.NAMES[:3]]
    for _ in range(30):
        yield "\n".join([*lex.NAMES, *labels])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "tiny-llama")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    def texts() -> Iterator[str]:
        yield from word_lists()
        yield from base_texts(seed=1)

    tokenizer = fit_tokenizer(texts())
    # Without this rule transformers, and the training core, would start no text with <s>.
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", start)]
    )
    tokenizer.save(str(args.output / "tokenizer.json"))
    (args.output / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "pad_token": "<pad>",
                "model_max_length": 2048,
                "clean_up_tokenization_spaces": False,
            },
            indent=2,
        )
        + "\n"
    )
    print(f"wrote {args.output / 'tokenizer.json'}")
