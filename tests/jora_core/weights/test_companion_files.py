"""Model folders as people have them: chat templates, byte order marks, odd heads, more tokens than rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jora_core.architecture.model_config import ModelConfig
from jora_core.base.errors import InputError
from jora_core.data.prompts.prompt_template import load_template
from jora_core.data.tokenizer import load_tokenizer
from jora_core.specs.prompts.settings import PromptSpec
from jora_core.weights.checkpoint_folder import hf_tensors
from jora_core.weights.companion_files import copy_companions, prompt_files, write_prompt_files
from jora_core.weights.load_params import load_params
from jora_core.weights.merge_adapters import write_merged
from jora_core.weights.model_folder import read_model
from jora_core.weights.tensor_store import TensorStore, write_tensors
from tests.jora_core.chat_templates import FORMATS, write_tokenizer

CHAT = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
TOOLS = "{{ tools }}" + CHAT
RAG = "{{ documents }}" + CHAT
SETTINGS = "tokenizer_config.json"


@pytest.fixture()
def folder(tiny_weights: Path, tmp_path: Path) -> Path:
    """A copy of a good model folder."""
    return Path(shutil.copytree(tiny_weights, tmp_path / "model"))


def put(folder: Path, files: dict[str, Any]) -> None:
    """Write files; an object is merged into the file of JSON that is there."""
    for name, value in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(value, dict):
            before = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps(before | value))
        else:
            path.write_text(value)


def templates(folder: Path) -> Any:
    """The chat templates that transformers reads."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder).chat_template


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": CHAT},
        {"chat_template.jinja": CHAT, "additional_chat_templates/tool_use.jinja": TOOLS},
        {
            "chat_template.jinja": CHAT,
            "additional_chat_templates/rag.jinja": RAG,
            "additional_chat_templates/tool_use.jinja": TOOLS,
        },
        {SETTINGS: {"chat_template": CHAT}},
        {
            SETTINGS: {
                "chat_template": [{"name": "default", "template": CHAT}, {"name": "rag", "template": RAG}]
            }
        },
        {"chat_template.jinja": TOOLS, SETTINGS: {"chat_template": CHAT}},
    ],
    ids=["one", "one-more", "two-more", "in-settings", "list-in-settings", "file-before-settings"],
)
def test_chat_templates_stay_where_transformers_finds_them(
    folder: Path, tmp_path: Path, files: dict[str, Any]
) -> None:
    put(folder, files)
    expected = templates(folder)
    assert expected and len(expected) > 1
    write_merged(folder, read_model(folder), [], tmp_path / "merged")
    assert templates(tmp_path / "merged") == expected
    for name in files:
        assert (tmp_path / "merged" / name).read_bytes() == (folder / name).read_bytes()


def test_templates_of_processors_and_of_links_are_copied_too(folder: Path, tmp_path: Path) -> None:
    put(folder, {"chat_template.json": {"chat_template": CHAT}, "LICENSE.md": "free"})
    put(tmp_path, {"blob": TOOLS})
    (folder / "additional_chat_templates").mkdir()
    # The cache of the hub holds links to blobs.
    (folder / "additional_chat_templates" / "tool_use.jinja").symlink_to(tmp_path / "blob")
    (folder / "additional_chat_templates" / "notes.txt").write_text("no template")
    write_merged(folder, read_model(folder), [], tmp_path / "merged")
    merged = {str(path.relative_to(tmp_path / "merged")) for path in (tmp_path / "merged").rglob("*")}
    assert {"chat_template.json", "LICENSE.md", "additional_chat_templates/tool_use.jinja"} <= merged
    assert "additional_chat_templates/notes.txt" not in merged
    copied = tmp_path / "merged" / "additional_chat_templates" / "tool_use.jinja"
    assert copied.read_text() == TOOLS and not copied.is_symlink()


@pytest.mark.parametrize("name", ["config.json", SETTINGS, "tokenizer.json", "generation_config.json"])
def test_a_byte_order_mark_is_read_and_not_copied(folder: Path, tmp_path: Path, name: str) -> None:
    put(folder, {"generation_config.json": {"eos_token_id": [1, 5]}})
    config, tokenizer = read_model(folder), load_tokenizer(folder, 400)
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_model(folder) == config
    assert load_tokenizer(folder, 400).encode("a lamp").tolist() == tokenizer.encode("a lamp").tolist()
    write_merged(folder, config, [], tmp_path / "merged")
    assert not (tmp_path / "merged" / name).read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_model(tmp_path / "merged") == config


def test_an_index_with_a_byte_order_mark(folder: Path) -> None:
    store = TensorStore.of_model(folder)
    files = dict.fromkeys(store.names(), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = json.dumps({"weight_map": files}).encode()
    (folder / "model.safetensors.index.json").write_bytes(b"\xef\xbb\xbf" + index)
    assert TensorStore.of_model(folder).names() == store.names()


@pytest.mark.parametrize("shape", ["whole", "sharded", "null-means-untied", "other-dtype"])
def test_an_untied_model_without_a_head_names_the_field(folder: Path, shape: str) -> None:
    """The fixture's model is tied, so that it has no head."""
    put(folder, {"config.json": {"tie_word_embeddings": None if shape == "null-means-untied" else False}})
    if shape == "sharded":
        names = TensorStore.of_model(folder).names()
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        put(folder, {"model.safetensors.index.json": {"weight_map": dict.fromkeys(names, "a.safetensors")}})
    if shape == "other-dtype":
        put(folder, {"config.json": {"dtype": "bfloat16"}})
    with pytest.raises(InputError) as caught:
        load_params(folder, read_model(folder))
    said = str(caught.value)
    assert "lm_head.weight" in said and "set tie_word_embeddings to true" in said and "\n" not in said


@pytest.mark.parametrize(
    ("dtype", "place"), [("float32", (0, 0)), ("bfloat16", (-1, -1)), ("float16", (17, 5))]
)
def test_one_number_makes_a_head_its_own(
    folder: Path, dtype: str, place: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A tied model with a head that differs from the embedding in one number, in any type of weights."""
    config = ModelConfig.from_hf(folder)
    tensors = hf_tensors(load_params(folder, config), config, dtype)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_tensors(folder / "model.safetensors", tensors)
    assert read_model(folder).tie_embeddings and not capsys.readouterr().err
    tensors["lm_head.weight"][place] += 1
    write_tensors(folder / "model.safetensors", tensors)
    found = read_model(folder)
    assert not found.tie_embeddings and "lm_head.weight is used" in capsys.readouterr().err
    params = load_params(folder, found)
    assert params.head is not None
    assert int((params.head != params.embedding).sum()) == 1


@pytest.mark.parametrize("extra", [["<image>"], ["<a>", "<b>", "<c>"], ["lamp lamp"], ["<|end|>", "🙂🙂"]])
def test_added_tokens_beyond_the_embedding(folder: Path, extra: list[str]) -> None:
    """As Gemma 3 1B has one: such a model loads, and the id is refused where a text really has it."""
    data = json.loads((folder / "tokenizer.json").read_text())
    rows = ModelConfig.from_hf(folder).vocab_size
    before = load_tokenizer(folder, rows)
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    for number, text in enumerate(extra):
        data["added_tokens"].append({"id": rows + number, "content": text, "special": "<" in text, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(folder, rows)
    for text in ("a lamp", "x </s> y", "river 7"):
        assert tokenizer.encode(text).tolist() == before.encode(text).tolist()
    for text in extra:
        if "<" in text:  # a control token, which a text never becomes
            assert max(tokenizer.encode(f"a {text} b")) < rows
        else:
            with pytest.raises(InputError, match=rf"the embedding has {rows} rows|embedding has {rows}"):
                tokenizer.encode(f"a {text} b")


def test_the_exported_folder_gives_the_prompts_of_training(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = write_tokenizer(tmp_path / "model", FORMATS["llama3"])
    tokenizer = load_tokenizer(model)
    for number, prompt in enumerate((PromptSpec(), PromptSpec(template="alpaca", system="Sys."))):
        folder = tmp_path / f"out{number}"
        copy_companions(model, folder)
        files = prompt_files(prompt, model, tokenizer)
        write_prompt_files(files, folder)
        card = files.description
        loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        template = load_template(prompt, tokenizer)
        if prompt.template == "auto":
            assert not (folder / "chat_template.jinja").exists(), "the base's own stays"
            messages = [{"role": "user", "content": "Do it.\n\nlamp"}]
            # The turn's end is no end of the tokenizer, so servers must learn it.
            ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
            assert template.end_id in ends and tokenizer.eos_id in ends and "<|eot_id|>" in card
        else:
            messages = [{"role": "system", "content": "Do it."}, {"role": "user", "content": "lamp"}]
            assert not (folder / "generation_config.json").exists() and "Sys." in card
        ids = loaded.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ids == [*template.bos, *tokenizer.encode(template.prompt("Do it.", "lamp"))]
