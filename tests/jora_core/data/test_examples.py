from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jora_core.base.errors import InputError
from jora_core.data.batches import BatchStream
from jora_core.data.examples import load_groups
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.prompts.shortening import context_blocks, shorten_prompt
from jora_core.data.row_packing import choose_row_lengths
from jora_core.data.shared_context import Example, Group, Piece, layout, plain_group, suffix_groups
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.common import ALPACA_SHORT
from jora_core.specs.data import DataSpec
from jora_core.specs.prompts.settings import PromptSpec
from tests.jora_core.trees import chains, listed


def spec(records: Path, **changes) -> DataSpec:
    return DataSpec(**({"records": records, "max_seq_len": 128, "tokens_per_batch": 512} | changes))


def test_record_is_bos_prompt_answer_eos(tiny_model, alpaca_rows, write_rows, tmp_path):
    rows = alpaca_rows(contexts=2, questions=1)
    tokenizer = load_tokenizer(tiny_model)
    data = load_groups(spec(write_rows(tmp_path / "r.parquet", rows)), tokenizer)
    for row, group in zip(rows, data.train, strict=True):
        prompt = tokenizer.encode(ALPACA_SHORT.format(**{k: row[k] for k in ("instruction", "input")}))
        answer = tokenizer.encode(row["output"])
        expected = [tokenizer.bos_id, *prompt, *answer, tokenizer.eos_id]
        ((tokens, weights),) = listed(group)
        assert tokens == expected
        assert weights == [0.0] * (1 + len(prompt)) + [1.0] * (len(answer) + 1)
        assert tokenizer.decode(tokens).endswith(row["output"])


def test_sharing_keeps_every_chain(tiny_model, alpaca_rows, write_rows, tmp_path):
    path = write_rows(tmp_path / "r.parquet", alpaca_rows())
    tokenizer = load_tokenizer(tiny_model)
    apart = load_groups(spec(path, sharing="off"), tokenizer)
    shared = load_groups(spec(path), tokenizer)
    assert len(shared.train) < len(apart.train)
    assert shared.counts["slots"] < 0.6 * shared.counts["slots_apart"]
    assert shared.counts["slots_apart"] == apart.counts["slots"]
    found = {id: chain for group in shared.train for id, chain in zip(group.ids, listed(group), strict=True)}
    assert found == {id: chain for group in apart.train for id in group.ids for chain in listed(group)}
    for group in shared.train:
        assert all(piece.weights[0] == 0 for _, piece in group.branches)


def test_over_long_context_is_cut_and_the_answer_stays(tiny_model, alpaca_rows, write_rows, tmp_path):
    rows = alpaca_rows(contexts=3, questions=2, lines=30)
    path = write_rows(tmp_path / "r.parquet", rows)
    tokenizer = load_tokenizer(tiny_model)
    lines: list[str] = []
    data = load_groups(spec(path, sharing="off"), tokenizer, log=lines.append)
    assert data.counts["shortened"] == len(rows)
    assert any("6 examples longer than 128 tokens" in line for line in lines)
    for row, group in zip(rows, data.train, strict=True):
        (chain,) = chains(group)
        assert len(chain) <= 128
        text = tokenizer.decode(chain.tokens)
        assert text.startswith("### Instruction:\nSay which line it is.\n\n### Input:\n#1 ")
        assert text.endswith(row["input"].split("\n\n")[1] + "\n\n### Response:\n" + row["output"])
        picked = int(row["output"].split()[1])
        assert row["input"].split("\n")[picked - 1] in text, "the line that holds the answer was dropped"


SAMPLE = Path(__file__).resolve().parents[3] / "data" / "sample"


@pytest.fixture(scope="module")
def sample_rows(tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """Real records of the embedded sample by task, as `build-context` writes them."""
    import pyarrow.parquet as pq

    from retrieval.build.build import build_record_files
    from retrieval.settings.context import ContextConfig

    folder = tmp_path_factory.mktemp("sample")
    raw = {
        "tables": {"source": str(SAMPLE / "tables"), "n_contexts": 3, "max_records": 60},
        "threads": {
            "source": str(SAMPLE / "threads.ndjson"),
            "format": "4chan",
            "n_contexts": 10,
            "legs": ["bm25", "recency"],
            "max_records": 60,
        },
        "qa": {
            "source": str(SAMPLE / "documents.jsonl"),
            "questions": str(SAMPLE / "questions.jsonl"),
            "n_contexts": 4,
            "legs": ["bm25"],
            "max_records": 60,
        },
    }
    build_record_files(ContextConfig.model_validate(raw), folder)
    rows = pq.read_table(folder / "records.parquet").to_pylist()
    return {
        task: [row for row in rows if row["task"] == task and row["split"] == "train"]
        for task in ("tables", "threads", "qa")
    }


@pytest.mark.parametrize("task", ["tables", "threads", "qa"])
def test_real_records_keep_what_holds_the_answer(tiny_model, sample_rows, write_rows, tmp_path, task):
    """Each record is cut to half of its own length: the oracle's text stays, whole others go."""
    tokenizer = load_tokenizer(tiny_model)
    rows = [row for row in sample_rows[task] if row["oracle_in_context"] and len(row["context_ids"]) > 2]
    assert len(rows) > 20
    separator = "\n" if task == "qa" else "\n\n"
    for number, row in enumerate(rows):
        texts = row["input"].rpartition("\n\n")[0].split(separator)
        assert len(texts) == len(row["context_ids"])
        oracle = [t for t, id in zip(texts, row["context_ids"], strict=True) if id in row["oracle_ids"]]
        question = row["input"].rpartition("\n\n")[2]
        frame = row["input"].replace(separator.join(texts), separator.join(oracle))
        fixed = len(tokenizer.encode(ALPACA_SHORT.format(instruction=row["instruction"], input=frame)))
        whole = len(tokenizer.encode(ALPACA_SHORT.format(**{k: row[k] for k in ("instruction", "input")})))
        answer = len(tokenizer.encode(row["output"])) + 2
        limit = max(fixed + 8, whole // 2) + answer
        path = write_rows(tmp_path / f"{number}.parquet", [row])
        data = load_groups(DataSpec(records=path, max_seq_len=limit, tokens_per_batch=limit), tokenizer)
        assert data.counts["shortened"] == (1 if limit < whole + answer else 0)
        (group,) = data.train
        text = tokenizer.decode(chains(group)[0].tokens)
        assert all(part in text for part in oracle), row["id"]
        assert text.endswith(f"{question}\n\n### Response:\n{row['output']}")
        # A text is there whole or not at all: no label without its post, no row without its header.
        context = text.split("### Input:\n")[1].rpartition(f"\n\n{question}")[0]
        assert [t for t in texts if t in context] == context.split(separator)


def test_texts_with_blank_lines_are_told_apart_by_their_labels():
    posts = ["first\n\nstill first\n#1 Ann", "#2 is wrong\n#2 Bea", "third\n\n#1 said so\n#3 Ann"]
    lines = "\n\n".join(posts).split("\n")
    found = context_blocks(lines, 3) or []
    assert ["\n".join(lines[i] for i in block).strip("\n") for block in found] == posts
    documents = ["[1] a. text\n\nmore", "[2] b. text", "[3] c. text\n[9] no number"]
    lines = "\n".join(documents).split("\n")
    found = context_blocks(lines, 3) or []
    assert ["\n".join(lines[i] for i in block) for block in found] == documents
    assert context_blocks(["one", "two"], 3) is None and context_blocks(["one", "", "two"], 1) == [range(3)]


def test_general_instructions_are_mixed_into_training_only(tiny_model, alpaca_rows, write_rows, tmp_path):
    path = write_rows(tmp_path / "r.parquet", alpaca_rows(contexts=40))
    tokenizer = load_tokenizer(tiny_model)
    said: list[str] = []
    plain = load_groups(spec(path, validation_share=0.3), tokenizer)
    mixed = load_groups(spec(path, validation_share=0.3, alpaca_mix=0.5), tokenizer, log=said.append)
    records = sum(len(group.ids) for group in plain.train)
    assert mixed.counts["mixed"] == records // 2 == len(mixed.train) - len(plain.train)
    assert any(line.startswith(f"data: {records // 2} general instructions mixed in") for line in said)

    def ids(side: tuple[Group, ...]) -> list[str]:
        return [id for group in side for id in group.ids]

    assert ids(mixed.validation) == ids(plain.validation) and ids(mixed.train)[:records] == ids(plain.train)
    assert all(id.startswith("mix-") for id in ids(mixed.train)[records:])
    # Seeded: the same again, another with another seed.
    again = load_groups(spec(path, validation_share=0.3, alpaca_mix=0.5), tokenizer)
    assert [listed(g) for g in again.train] == [listed(g) for g in mixed.train]
    other = load_groups(spec(path, alpaca_mix=0.5), tokenizer, seed=1)
    assert [listed(g) for g in other.train[-9:]] != [listed(g) for g in mixed.train[-9:]]

    # The user's own file: what it has is drawn, at most once each; the test split gets none.
    (tmp_path / "own.json").write_text(
        json.dumps([{"instruction": f"Say {w}.", "input": "", "output": w} for w in ("lamp", "river")])
    )
    own = load_groups(
        spec(path, alpaca_mix=0.5, alpaca_path=tmp_path / "own.json"), tokenizer, log=said.append
    )
    assert sorted(tokenizer.decode(chains(g)[0].tokens).split()[-1] for g in own.train[-2:]) == [
        "lamp",
        "river",
    ]
    assert own.counts["mixed"] == 2 and "own.json (60 wanted)" in said[-2]
    rows = [row | {"split": "test"} for row in alpaca_rows(contexts=4)]
    held_out = write_rows(tmp_path / "t.parquet", rows)
    assert load_groups(spec(held_out, split="test", alpaca_mix=0.5), tokenizer).counts["mixed"] == 0
    with pytest.raises(ValueError, match="alpaca_mix is 0; give the share"):
        spec(path, alpaca_path=tmp_path / "own.json")


@pytest.mark.parametrize("budget", [5, 20, 40, 60, 100])
def test_any_budget_is_kept(tiny_model, budget):
    tokenizer = load_tokenizer(tiny_model)
    question = "Question: which one is the lamp in the garden by the river?"
    template = load_template(PromptSpec(template="alpaca"), tokenizer)
    tokens = shorten_prompt(tokenizer, template, "Do it.", "copper " * 80 + "\n\n" + question, budget)
    assert len(tokens) <= budget
    if budget == 100:
        assert question in tokenizer.decode(tokens)


def test_an_answer_longer_than_the_limit_is_dropped_and_counted(
    tiny_model, alpaca_rows, write_rows, tmp_path
):
    rows = alpaca_rows(contexts=2, questions=1)
    rows[0]["output"] = "lamp " * 300
    data = load_groups(spec(write_rows(tmp_path / "r.parquet", rows)), load_tokenizer(tiny_model))
    assert data.counts["dropped"] == 1 and len(data.train) == 1


def test_weighted_text(tiny_model, write_rows, tmp_path):
    segments = [{"text": "river copper", "weight": 0.5}, {"text": " seven", "weight": 1.0}]
    suffixes = [[{"text": " lamp", "weight": 0.0}, {"text": " bread", "weight": 1.0}]] * 2
    rows = [
        {"id": "plain", "segments": segments, "suffixes": []},
        {"id": "shared", "segments": [{"text": "market " * 20, "weight": 0.5}], "suffixes": suffixes},
    ]
    tokenizer = load_tokenizer(tiny_model)
    data = load_groups(spec(write_rows(tmp_path / "r.parquet", rows)), tokenizer)
    plain, shared = data.train
    first, second = tokenizer.encode("river copper"), tokenizer.encode(" seven")
    assert listed(plain) == [
        (
            [tokenizer.bos_id, *first, *second, tokenizer.eos_id],
            [0.0] + [0.5] * len(first) + [1.0] * (len(second) + 1),
        )
    ]
    one, two = listed(shared)
    assert one == two and one[0][-1] == tokenizer.eos_id and one[1][-1] == 1.0
    prefix = 1 + len(tokenizer.encode("market " * 20))
    assert shared.branches[1].start == prefix
    slots = layout(shared)
    own = len(one[0]) - 1 - prefix
    assert slots.positions[-own:].tolist() == list(range(prefix, prefix + own))


def test_suffixes_that_start_supervised_get_a_slot_each():
    prefix = Piece(np.arange(20, dtype=np.int32), np.full(20, 0.25, np.float32))
    suffixes = [Piece(np.asarray([50 + i, 1], np.int32), np.ones(2, np.float32)) for i in range(3)]
    (group,) = suffix_groups("x", prefix, suffixes, 64, shared=True)
    slots = layout(group)
    supervised = Counter(slots.targets[slots.weights == 1.0].tolist())
    assert supervised == {50: 1, 51: 1, 52: 1, 1: 3}
    # The prefix's own weight counts once: 19 predicted tokens of 0.25.
    assert slots.weights.sum() == pytest.approx(19 * 0.25 + 6)
    split = suffix_groups("x", prefix, suffixes, 24, shared=True)
    assert len(split) == 2
    assert sum(layout(g).weights.sum() for g in split) == pytest.approx(19 * 0.25 + 6)
    apart = suffix_groups("x", prefix, suffixes, 24, shared=False)
    assert sum(layout(g).weights.sum() for g in apart) == pytest.approx(19 * 0.25 + 6)


def some_groups(n: int = 300, seed: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 200, n)
    return [
        plain_group(
            Example(f"e{i}", "", rng.integers(0, 99, k).astype(np.int32), np.asarray([7, 1], np.int32))
        )
        for i, k in enumerate(lengths)
    ]


def test_an_epoch_holds_every_group_once_in_fixed_shapes():
    groups = some_groups()
    stream = BatchStream(groups, 512, seed=3)
    batches = [stream.build(plan) for plan in stream.plan(1)]
    assert Counter(i for b in batches for i in b.ids) == Counter(g.ids[0] for g in groups)
    assert sum(b.slots for b in batches) == sum(g.slots for g in groups)
    assert len({b.tokens.shape for b in batches}) <= 3
    assert sum(b.slots for b in batches) / sum(b.tokens.size for b in batches) > 0.85
    assert all(b.tokens.size <= 512 for b in batches)
    assert sum(b.weights.sum() for b in batches) == 2 * len(groups)


def test_order_follows_from_seed_and_epoch_and_resumes_anywhere():
    groups = some_groups()
    stream = BatchStream(groups, 512, seed=3)
    walk = stream.walk()
    seen = [next(walk) for _ in range(len(stream.plan(0)) + 5)]
    at = len(stream.plan(0)) + 1
    resumed = BatchStream(groups, 512, seed=3).walk(*seen[at - 1][0])
    for position, batch in seen[at:]:
        again_position, again = next(resumed)
        assert again_position == position and again.ids == batch.ids
        np.testing.assert_array_equal(again.tokens, batch.tokens)
    assert stream.plan(0) != stream.plan(1) != BatchStream(groups, 512, seed=4).plan(1)


def test_curriculum_starts_short():
    stream = BatchStream(some_groups(3000), 512, seed=0, curriculum="length")

    def lengths(epoch: int) -> list[float]:
        batches = [stream.build(plan) for plan in stream.plan(epoch)]
        return [b.slots / len(b.ids) for b in batches]

    first, second = lengths(0), lengths(1)
    tenth = len(first) // 10
    assert np.mean(first[:tenth]) < 0.35 * np.mean(first[-tenth:])
    assert np.mean(second[:tenth]) > 0.8 * np.mean(second[-tenth:])


def test_row_lengths_cover_all_and_are_few():
    sizes = np.asarray([30] * 50 + [100] * 50 + [500])
    lengths = choose_row_lengths(sizes, 1024)
    assert len(lengths) <= 3 and lengths[-1] == 512 and all(length % 64 == 0 for length in lengths)
    assert choose_row_lengths(np.asarray([10]), 50) == (50,)


def test_validation_keeps_whole_contexts(tiny_model, alpaca_rows, write_rows, tmp_path):
    path = write_rows(tmp_path / "r.parquet", alpaca_rows(contexts=40))
    data = load_groups(spec(path, validation_share=0.3), load_tokenizer(tiny_model))
    sides = [{i.split("-")[0] for g in side for i in g.ids} for side in (data.train, data.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 40


def test_bad_files_are_named(tiny_model, alpaca_rows, write_rows, tmp_path):
    tokenizer = load_tokenizer(tiny_model)
    with pytest.raises(InputError, match=r"no records file .*absent"):
        load_groups(spec(tmp_path / "absent.parquet"), tokenizer)
    rows = alpaca_rows(contexts=1)
    for row in rows:
        del row["output"]
    path = write_rows(tmp_path / "r.parquet", rows)
    with pytest.raises(InputError, match=r"r\.parquet: column 'output' is missing"):
        load_groups(spec(path), tokenizer)
    (tmp_path / "broken.parquet").write_text("no Parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        load_groups(spec(tmp_path / "broken.parquet"), tokenizer)
    path = write_rows(tmp_path / "r.parquet", [row | {"output": 3} for row in rows])
    with pytest.raises(InputError, match="column 'output' has type int64, expected text"):
        load_groups(spec(path), tokenizer)
    path = write_rows(tmp_path / "r.parquet", [{"segments": ["text"]}])
    with pytest.raises(InputError, match="expected list<struct<text, weight>>"):
        load_groups(spec(path), tokenizer)
    path = write_rows(tmp_path / "r.parquet", alpaca_rows(contexts=1))
    with pytest.raises(InputError, match="no examples with split='test'"):
        load_groups(spec(path, split="test"), tokenizer)
    with pytest.raises(InputError, match=r"bad field \{nothing\}"):
        load_groups(spec(path, prompt_template="{nothing}"), tokenizer)
