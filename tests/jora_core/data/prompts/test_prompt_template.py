"""Prompts by chat templates, held against `transformers`; control tokens, systems, turns and shortening."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from jora_core.base.errors import InputError
from jora_core.base.notices import notice
from jora_core.data.examples import load_groups
from jora_core.data.prompts.prompt_template import jinja_of_format, load_template
from jora_core.data.prompts.shortening import NoRoomError, shorten_prompt
from jora_core.data.tokenizer import TextTokenizer, load_tokenizer
from jora_core.specs.common import ALPACA_SHORT
from jora_core.specs.data import DataSpec
from jora_core.specs.prompts.jinja_template import compile_template, within_seconds
from jora_core.specs.prompts.settings import PromptSpec
from tests.jora_core.chat_templates import FORMATS, WORDS, ChatFormat, write_tokenizer
from tests.jora_core.trees import listed

CHAT = PromptSpec(template="chat")
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "lamp\n\n  river?  "},
    {"role": "assistant", "content": "copper seven"},
    {"role": "user", "content": "window"},
    {"role": "assistant", "content": "garden"},
]


@pytest.fixture(scope="module", params=FORMATS)
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ChatFormat, TextTokenizer]:
    folder = write_tokenizer(tmp_path_factory.mktemp(request.param), FORMATS[request.param])
    return request.param, FORMATS[request.param], load_tokenizer(folder)


def rendered(chat: ChatFormat, messages: list[dict[str, str]], prompt: bool) -> str:
    """The text that `transformers` makes of messages."""
    from transformers.utils.chat_template_utils import render_jinja_template

    if not chat.takes_system and messages[0]["role"] == "system":
        first, second, *rest = messages
        messages = [{**second, "content": f"{first['content']}\n\n{second['content']}"}, *rest]
    texts, _ = render_jinja_template(
        [messages],
        chat_template=chat.template,
        add_generation_prompt=prompt,
        bos_token=chat.bos,
        enable_thinking=False,
    )
    return texts[0]


def reference(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids that `tokenizers` gives a text in which control tokens are tokens."""
    from tokenizers import Tokenizer

    assert tokenizer.folder is not None
    plain = Tokenizer.from_file(str(tokenizer.folder / "tokenizer.json"))
    return plain.encode(text, add_special_tokens=False).ids


def test_prompts_equal_those_of_transformers(case: tuple[str, ChatFormat, TextTokenizer]) -> None:
    _, chat, tokenizer = case
    template = load_template(PromptSpec(template="auto", system="Be brief."), tokenizer)
    rng = random.Random(0)
    for number in range(20):
        text = " ".join(rng.choices([*WORDS, "\n\n", " ", "ü", "#3", "日本"], k=number))
        user = f"Answer.\n\n{text}\n\nQuestion: which?"
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": user}]
        found = [*template.bos, *tokenizer.encode(template.prompt("Answer.", f"{text}\n\nQuestion: which?"))]
        assert found == reference(tokenizer, rendered(chat, messages, True))
    answer = [*tokenizer.encode(template.answer("lamp river")), template.end_id]
    assert tokenizer.decode(answer) == "lamp river"
    assert tokenizer.text_of(template.end_id) == chat.end
    if tokenizer.bos_id is not None:
        assert found.count(tokenizer.bos_id) == 1, "one BOS, which the template writes"


def test_control_tokens_in_texts_stay_text(case: tuple[str, ChatFormat, TextTokenizer]) -> None:
    _, chat, tokenizer = case
    template = load_template(CHAT, tokenizer)
    evil = "".join(chat.controls)
    clean = list(tokenizer.encode(template.prompt("Answer.", "lamp")))
    found = list(tokenizer.encode(template.prompt(f"Answer.{evil}", f"lamp {evil}")))
    for text in chat.controls:
        number = tokenizer.controls[text]
        assert found.count(number) == clean.count(number)
    assert tokenizer.decode(found).count(evil) == 2, "and nothing of it is lost"
    private = tokenizer.mark(chat.end)
    hidden = tokenizer.encode(template.prompt("Answer.", private))
    assert list(hidden).count(template.end_id) == clean.count(template.end_id)
    assert template.end_id not in tokenizer.encode(template.answer(chat.end + private))


def test_every_turn_of_the_assistant_is_taught(
    case: tuple[str, ChatFormat, TextTokenizer], write_rows: Any, tmp_path: Path
) -> None:
    _, chat, tokenizer = case
    rows = [
        {"id": "a", "messages": TALK},
        {"id": "b", "messages": TALK[1:4]},
        {"id": "c", "messages": TALK[:2]},
    ]
    path = write_rows(tmp_path / "r.parquet", rows)
    spec = DataSpec(records=path, max_seq_len=256, tokens_per_batch=512, prompt=CHAT)
    data = load_groups(spec, tokenizer)
    assert data.counts["records"] == 3 and data.counts["dropped"] == 1, "no answer, nothing to teach"
    (tokens, weights), *_ = listed(data.train[0])
    # What follows the last end of turn is left out.
    whole = rendered(chat, TALK, False)
    assert tokens == reference(tokenizer, whole[: whole.rindex(chat.end) + len(chat.end)])
    taught: list[list[int]] = [[]]
    for token, weight in zip(tokens, weights, strict=True):
        if weight:
            taught[-1].append(token)
        elif taught[-1]:
            taught.append([])
    ends = [
        tokenizer.encode(text).tolist() + [tokenizer.controls[chat.end]]
        for text in ("copper seven", "garden")
    ]
    assert taught == ends
    (tokens, weights), *_ = listed(data.train[1])
    assert sum(weights) == len(ends[0]), "what follows the last answer is left out"


def test_a_long_conversation_loses_its_oldest_turns(write_rows: Any, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "model", FORMATS["smollm2"]))
    turns = [
        {"role": role, "content": f"{word} {number}"}
        for number, word in enumerate(WORDS)
        for role in ("user", "assistant")
    ]
    rows = [
        {"id": "a", "messages": [TALK[0], *turns]},
        {"id": "b", "messages": [turns[0], {**turns[1], "content": "x " * 99}]},
    ]
    spec = DataSpec(
        records=write_rows(tmp_path / "r.parquet", rows), max_seq_len=64, tokens_per_batch=64, prompt=CHAT
    )
    data = load_groups(spec, tokenizer)
    assert (data.counts["shortened"], data.counts["dropped"]) == (1, 1)
    ((tokens, _),) = listed(data.train[0])
    text = tokenizer.decode(tokens)
    assert len(tokens) <= 64 and "Be brief." in text and text.endswith("bread 9") and "lamp 0" not in text


def test_a_shared_context_is_shared_under_every_template(
    case: tuple[str, ChatFormat, TextTokenizer], alpaca_rows: Any, write_rows: Any, tmp_path: Path
) -> None:
    _, _, tokenizer = case
    rows = alpaca_rows(contexts=4, questions=5, lines=12)
    path = write_rows(tmp_path / "r.parquet", rows)
    counts = {}
    for sharing in ("auto", "off"):
        spec = DataSpec(
            records=path,
            max_seq_len=1024,
            tokens_per_batch=4096,
            prompt=CHAT,
            sharing=sharing,
            tasks=["threads"],
        )
        counts[sharing] = load_groups(spec, tokenizer).counts
    assert counts["auto"]["groups"] == 4, "one for each context"
    assert counts["auto"]["slots_apart"] == counts["off"]["slots"]
    template = load_template(CHAT, tokenizer)
    own = 0
    for row in rows:
        context = row["input"].rpartition("\n\n")[0]
        head = tokenizer.encode(template.prompt(row["instruction"], f"{context}\n\n"))
        whole = tokenizer.encode(template.prompt(row["instruction"], row["input"]))
        answer = tokenizer.encode(template.answer(row["output"]))
        # The tokens of a question begin where its prompt leaves that of an empty one, at the latest.
        same = next(n for n, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b)
        own += len(whole) - same + len(answer)
    saved = counts["auto"]["slots_apart"] - counts["auto"]["slots"]
    prefixes = counts["auto"]["slots"] - own
    assert prefixes < 0.3 * counts["auto"]["slots_apart"] and saved > 0.5 * counts["auto"]["slots_apart"]


def test_shortening_keeps_the_template(case: tuple[str, ChatFormat, TextTokenizer]) -> None:
    _, chat, tokenizer = case
    template = load_template(CHAT, tokenizer)
    question = "Question: which one is the lamp?"
    whole = tokenizer.encode(template.prompt("Do it.", "copper " * 80 + "\n\n" + question))
    head, tail, controls = template.frame("Do it.")
    assert controls
    least = len(tokenizer.encode(head)) + len(tokenizer.encode(tail))
    for budget in (least, least + 3, least + 20, len(whole) - 1):
        cut = shorten_prompt(tokenizer, template, "Do it.", "copper " * 80 + "\n\n" + question, budget)
        assert len(cut) <= budget
        for number in {tokenizer.controls[text] for text in chat.controls}:
            assert list(cut).count(number) == list(whole).count(number)
    with pytest.raises(NoRoomError, match="the prompt template and the instruction take"):
        shorten_prompt(tokenizer, template, "Do it.", "copper " * 80 + "\n\n" + question, least - 1)


def test_a_system_message_without_a_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, FORMATS["gemma"]))
    text = tokenizer.decode(tokenizer.encode(load_template(CHAT, tokenizer).prompt("Do it.", "lamp")))
    assert "no place for a system message" not in capsys.readouterr().err
    notice.cache_clear()  # equal lines are printed once in a process
    template = load_template(PromptSpec(template="chat", system="Be kind."), tokenizer)
    found = tokenizer.decode(tokenizer.encode(template.prompt("Do it.", "lamp")))
    assert found == text.replace("Do it.", "Be kind.\n\nDo it.")
    assert "no place for a system message" in capsys.readouterr().err


def test_templates_in_files(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "model", FORMATS["smollm2"]))
    own = load_template(PromptSpec(), tokenizer)
    path = tmp_path / "own.jinja"
    path.write_text(FORMATS["smollm2"].template)
    named = load_template(PromptSpec(template=str(path)), tokenizer)
    assert named.prompt("Do.", "it") == own.prompt("Do.", "it") and named.digest == own.digest
    (tmp_path / "format.txt").write_text(
        "<|im_start|>user\n{instruction}\n{input}<|im_end|>\n{output}<|im_end|>"
    )
    template = load_template(PromptSpec(template=str(tmp_path / "format.txt")), tokenizer)
    ids = tokenizer.encode(template.prompt("Do <|im_end|>.", "it")).tolist()
    assert ids[0] == tokenizer.controls["<|im_start|>"], "a control token, not its characters"
    assert (
        ids.count(tokenizer.controls["<|im_end|>"]) == 1
        and template.end_id == tokenizer.controls["<|im_end|>"]
    )
    # A tokenizer without a template, and one with: alpaca is the same text, and `auto` chooses.
    plain = load_tokenizer(tiny_model)
    for prompt, chosen in ((PromptSpec(), plain), (PromptSpec(template="alpaca"), tokenizer)):
        template = load_template(prompt, chosen)
        assert template.prompt("Do.", "it") == ALPACA_SHORT.format(instruction="Do.", input="it")
        assert template.name == "alpaca" and template.end_id == chosen.eos_id
    with pytest.raises(InputError, match="has no chat template"):
        load_template(CHAT, plain)


def test_the_exported_template_gives_the_prompts_of_training(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(tiny_model)
    for text in (ALPACA_SHORT, "Q {instruction}\n{{x}} {input} 'A' \"b\"\n{output} end"):
        template = load_template(PromptSpec(template=text, system="Sys {x}."), tokenizer)
        render = compile_template(jinja_of_format(text, "Sys {x}.", bos=True), "test")
        messages = [{"role": "system", "content": "Do."}, {"role": "user", "content": "a\n\nb"}]
        given = {"bos_token": "<s>", "eos_token": "</s>"}
        assert render(messages=messages, **given) == "<s>" + template.prompt("Do.", "a\n\nb")
        talk = [*messages, {"role": "assistant", "content": "c"}]
        end = " end" if "end" in text else "</s>"
        assert render(messages=talk, **given) == "<s>" + template.prompt("Do.", "a\n\nb") + "c" + end
        given, answered = template.turns(talk)
        assert given.endswith(template.prompt("Do.", "a\n\nb")) and answered.startswith("c")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1: Unexpected end of template"),
        ("{% for m in messages %}{{ raise_exception('only tools') }}{% endfor %}", "refuses .* only tools"),
        ("{% for m in messages %}{{ m.content.upper() }}{% endfor %}", "leaves out the user's message"),
        ("{{ messages[0].content }}{% if 0 %}{% endif %}", "leaves out the assistant's message"),
        (
            "{% for m in messages %}{{ m.nothing.more }}{% endfor %}",
            "refuses the messages: 'dict object' has no",
        ),
        (
            "{{ messages.__class__.__mro__ }}{% if 0 %}{% endif %}",
            "refuses the messages: access to attribute",
        ),
        ("{output} only", "neither {instruction} nor {input}"),
        ("{instruction} {", "prompt.template: .*; write {{ for a brace"),
        ("nowhere.jinja", "no such file: nowhere.jinja; expected auto, alpaca, chat or the path"),
    ],
)
def test_refused_templates(template: str, said: str, tiny_model: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_template(PromptSpec(template=template), load_tokenizer(tiny_model))
    assert "\n" not in str(caught.value)


def test_a_template_that_does_not_end() -> None:
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    render = compile_template(loops, "loops.jinja")
    with pytest.raises(InputError, match=r"loops\.jinja does not end within 0\.1 s"):
        within_seconds(lambda: render(messages=[]), "loops.jinja", 0.1)


def test_a_date_is_always_the_same(tiny_model: Path) -> None:
    text = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert (
        load_template(PromptSpec(template=text), load_tokenizer(tiny_model))
        .prompt("a", "")
        .startswith("26 Jul")
    )
