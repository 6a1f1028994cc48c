"""Reading a configuration: the shipped recipes, paths, overrides, and what is said about wrong ones."""

from __future__ import annotations

import os
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flows.configuration.fetched_models import MODELS
from flows.configuration.files.other_names import OTHER_NAMES
from flows.configuration.files.yaml_file import apply_overrides, parse_yaml
from flows.configuration.hub_models import fetched_folder
from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG
from flows.configuration.schema import PipelineConfig
from jora_core.base.error_messages import known_keys, near_name
from jora_core.base.errors import InputError
from tests.flows.conftest import Project, configuration

REPOSITORY = SAMPLE_CONFIG.parents[2]
RECIPES = sorted(SAMPLE_CONFIG.parent.glob("*.yaml"))


def refusal(*overrides: str, file: Path | None = None) -> str:
    """The one line that refuses a configuration."""
    with pytest.raises(InputError) as caught:
        load_config(file, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_load_and_say_their_command(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JORA_SHARED", "/data/shared")
    config = load_config(recipe)
    assert config.root == str(REPOSITORY)
    named = "smollm2" if recipe.name == "docs-only.yaml" else recipe.name
    fetched = next((name for name in MODELS if named.startswith(name.partition("-")[0])), None)
    model = fetched_folder(fetched) if fetched else REPOSITORY / "data/tiny-llama"
    assert config.model.path == str(model)
    assert config.store == str(tmp_path / "runs"), "what a run writes counts from the working directory"
    header = recipe.read_text().split("\nroot:")[0]
    assert f"jora run flows/configs/{recipe.name}" in header
    assert all(line.startswith("#") for line in header.splitlines())


def test_no_file_is_the_sample() -> None:
    assert load_config() == load_config(SAMPLE_CONFIG)


def test_shared_data_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SAMPLE_CONFIG.with_name("wtq-irc.yaml")
    monkeypatch.setenv("JORA_SHARED", "/data/shared")
    threads = load_config(recipe).context.threads
    assert threads is not None and threads.source == "/data/shared/data/irc/train"
    monkeypatch.delenv("JORA_SHARED")
    tables = load_config(recipe).context.tables
    assert tables is not None and tables.source == str(REPOSITORY.parent / "shared/data/wikitables")


def test_every_field_has_a_title_and_a_description() -> None:
    """The Prefect form labels fields by them."""
    seen: set[type[BaseModel]] = set()

    def visit(annotation: Any) -> None:
        for inner in typing.get_args(annotation):
            visit(inner)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)) or annotation in seen:
            return
        seen.add(annotation)
        assert annotation.model_config.get("extra") == "forbid" and annotation.model_config.get("frozen")
        for name, field in annotation.model_fields.items():
            assert field.title and field.description, f"{annotation.__name__}.{name}"
            visit(field.annotation)

    visit(PipelineConfig)
    assert len(seen) > 10


def test_form_and_back() -> None:
    """What a deployment stores as JSON is the same configuration again."""
    config = load_config()
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    assert config.resolved() == config


def test_paths_from_a_form_count_from_root(tmp_path: Path) -> None:
    raw = {**configuration(), "root": str(tmp_path)}
    config = PipelineConfig.model_validate(raw).resolved()
    assert config.model.path == str(tmp_path / "model")
    assert config.context.qa is not None and config.context.qa.questions == str(tmp_path / "questions.jsonl")


def test_overrides(project: Project) -> None:
    config = project.config(
        "seed=7",
        "phases.1.optim.learning_rate=2e-4",
        "phases.finetune-structure.tasks=[tables]",
        "export.dtype=null",
    )
    assert (config.seed, config.context.seed) == (7, 7)
    assert config.phases[1].optim.learning_rate == 2e-4
    assert config.phases[0].tasks == ["tables"]
    assert project.config().phases[1].optim.learning_rate == 1e-4


def test_paths_of_overrides_count_from_the_working_directory(
    project: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.config()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    config = load_config(project.config_file, ["model.path=my-model", "context.threads={source: t.ndjson}"])
    assert config.model.path == str(elsewhere / "my-model")
    assert config.context.threads is not None and config.context.threads.source == str(elsewhere / "t.ndjson")
    assert config.context.tables is not None and config.context.tables.source == str(
        project.folder / "tables"
    )


def test_embedder_is_a_folder_or_a_public_name(project: Project) -> None:
    assert project.config("context.embedder=org/some-embedder").context.embedder == "org/some-embedder"
    (project.folder / "embedder").mkdir()
    assert project.config("context.embedder=embedder").context.embedder == str(project.folder / "embedder")
    assert project.config("context.embedder=./missing").context.embedder == str(project.folder / "missing")


def test_chunks_are_counted_by_the_models_tokenizer(tmp_path: Path) -> None:
    from flows.stages.build_context import BUILD_CONTEXT

    sample = load_config()
    assert sample.context.tokenizer == sample.model.path
    whole, label = BUILD_CONTEXT.inputs(sample), "tokenizer/tokenizer.json"
    assert sample.context.counts_tokens == (label in whole), "what counts nothing depends on no tokenizer"
    chunked = load_config(None, ["context.qa.chunk_tokens=64"])
    assert BUILD_CONTEXT.inputs(chunked)[label] == Path(sample.model.path) / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_text("{}")
    own = load_config(None, ["context.qa.chunk_tokens=64", f"context.tokenizer={tmp_path}"])
    assert BUILD_CONTEXT.inputs(own)[label] == tmp_path / "tokenizer.json"
    assert "tokenizer" not in BUILD_CONTEXT.settings(own)["context"], "a moved model changes no key"


def test_second_phase_inherits_the_adapter_shape(project: Project) -> None:
    config = project.config("phases.0.lora={r: 4, target_modules: [q_proj]}")
    assert config.phases[1].lora == config.phases[0].lora
    assert config.phases[1].lora.r == 4


def test_targets_are_names_or_a_pattern(project: Project) -> None:
    for given, expected in [
        ("all-linear", "all-linear"),
        (r".*\.(q|v)_proj", r".*\.(q|v)_proj"),
        ("[v_proj, down_proj]", ["v_proj", "down_proj"]),
    ]:
        lora = project.config(f"phases.0.lora.target_modules={given}").phases[0].lora
        assert lora.target_modules == expected
    with pytest.raises(InputError, match="target_modules names 'q_prj'; expected some of q_proj"):
        project.config("phases.0.lora.target_modules=[q_prj]")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sed=1", "--set: sed: unknown key; did you mean seed?"),
        ("phases.1.optim.learing_rate=1", "optim.learing_rate: unknown key; did you mean learning_rate?"),
        ("context.threads.n_context=3", "context.threads.n_context: unknown key; did you mean n_contexts?"),
        ("export.zzz=3", "export.zzz: unknown key; known keys are formats, gguf, dtype"),
        ("phases.1.max_steps=abc", "phases.1.max_steps: expected a whole number, got 'abc'"),
        ("phases.1.max_steps=1.5", "phases.1.max_steps: expected a whole number, got 1.5"),
        ("phases.0.optim.learning_rate=fast", "learning_rate: expected a number, got 'fast'"),
        ("phases.0.optim.learning_rate=.nan", "learning_rate: expected a finite number, got nan"),
        ("export.verify=perhaps", "export.verify: expected true or false, got 'perhaps'"),
        ("model=3", "model: expected a mapping of keys, got 3"),
        ("model.path=~0", "--set: model.path: '~0' has no home directory; write the path in full, or ./~0"),
        ("store=~nobody-here/runs", "--set: store: '~nobody-here' has no home directory"),
        ("context.embedder=~ ann/x", "--set: context.embedder: '~ ann' has no home directory"),
        ("context.threads.source=~é", "--set: context.threads.source: '~é' has no home directory"),
        ("phases.0.tasks=tables", "phases.0.tasks: expected a list, got 'tables'"),
        ("phases.0.tasks=[chess]", "phases.0.tasks.0: expected 'tables', 'threads' or 'qa', got 'chess'"),
        ("model.dtype=int8", "model.dtype: expected 'float32' or 'bfloat16', got 'int8'"),
        ("model.path=3", "model.path: expected text, got 3"),
        ("mesh.data=0", "mesh.data: expected at least 1, got 0"),
        ("phases.1.lora.r=8", "phases.1.lora must equal phases.0.lora"),
        ("phases.0.n_epochs=1", "phases.0: give exactly one of max_steps and n_epochs"),
        ("phases.0.max_seq_len=100000", "tokens_per_batch (128) must be at least max_seq_len (100000)"),
        ("context.threads=null", "phases.1.tasks names threads, but context.threads is not given"),
        ("phases.0.stage=finetune-task", "phases must be finetune-structure then finetune-task"),
        ("phases.9.max_steps=1", "no item 9 in the list; there are 0, 1, finetune-structure, finetune-task"),
        ("phases.finetune-taks.max_steps=1", "item finetune-taks in the list; did you mean finetune-task?"),
        ("seed.x=1", "seed is a plain value (0), it has no keys"),
        ("seed", "--set seed: expected key.path=value"),
        ("context.near_duplicates=2", "context.near_duplicates: expected at most 1 or 'off', got 2"),
        ("phases.0.tasks=[]", "phases.0.tasks: expected at least 1 item, got []"),
        ("phases.1.max_steps=true", "--set: phases.1.max_steps: expected a whole number, got true"),
        ("lora_rank=8", "--set: lora_rank: unknown key; its name here is phases.0.lora.r"),
        ("phases.1.learning_rate=1", "belongs to another section: phases.1.optim.learning_rate"),
        ("phases.1.gradient_checkpointing=1", "unknown key; its name here is phases.1.remat (none,"),
        ("model.adapter=x", "model.adapter: unknown key; known keys are"),
        ("phases.1.loss=x", "there is no such setting; the loss is always"),
        ("=1", "--set =1: expected key.path=value"),
        ("phases=[1", "--set phases, line 1, column 3: broken YAML"),
        ("model.path=${NOT_SET_ANYWHERE}/x", "model.path: environment variable NOT_SET_ANYWHERE is not set"),
    ],
)  # fmt: skip
def test_wrong_overrides(project: Project, override: str, words: str) -> None:
    project.config()
    assert words in refusal(override, file=project.config_file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1\n", "line 2, column 1: broken YAML"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: broken YAML: key 'seed' is given twice"),
        ("- seed\n", "expected a mapping of keys to values, got ['seed']"),
        ("", "the file is empty; `jora init DIR` writes a configuration"),
        ("model: {path: m}\nphases: []\n", "context: this key is missing (and 1 more)"),
        ("root: 3\n", "root: expected text, got 3"),
        (
            "schedule: {cron: */5 * * * *}\n",
            "line 1, column 18: broken YAML: found undefined alias '/5'; the value needs quotes: cron: '*/5",
        ),
        ("model: {path: {{MODEL}}}\n", "the value needs quotes: path: '{{MODEL}}'"),
        (
            "model:\n  path: {{ MODEL }}\n",
            "line 2, column 10: broken YAML: found unhashable key; the value needs quotes: path: '{{ MOD",
        ),
        ("a: %x\n", "the value needs quotes: a: '%x'"),
        ("model:\n\tpath: x\n", "indent with spaces, not with tabs"),
        ("seed: " + "9" * 5000, "a value cannot be read"),
        ("1: 2\n", "1: unknown key; known keys are"),
        (
            "a: [&b [x, x]]\n"
            + "".join(f"a{n}: [&b{n} [" + ", ".join([f"*b{n - 1 or ''}"] * 9) + "]]\n" for n in range(1, 9)),
            "more than 100,000 values",
        ),
        ("a: !!python/object/apply:os.system [ls]\n", "broken YAML: could not determine a constructor"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(text)
    message = refusal(file=file)
    assert message.startswith(str(file))
    assert words in message


def test_a_value_with_a_mark_of_yaml_is_a_text_on_the_command_line(project: Project) -> None:
    assert project.config("schedule.cron=*/5 * * * *").schedule.cron == "*/5 * * * *"


def test_every_other_name_has_a_setting() -> None:
    """The table of other tools' names leads to settings that exist, and never from a name of ours."""
    for name, ours in OTHER_NAMES.items():
        *section, key = ours.key.replace("*", "0").split(".")
        assert key in known_keys(PipelineConfig, section), (name, ours.key)
        assert name not in known_keys(PipelineConfig, section), name


def test_no_unrelated_key_is_proposed() -> None:
    known = known_keys(PipelineConfig, ["phases", "0"])
    for name in ("loss", "adapter", "gradient_checkpointing", "learning_rate", "packing", "lr", "b"):
        assert near_name(name, known) is None
    for name, meant in {"max_step": "max_steps", "remst": "remat", "n_epoch": "n_epochs"}.items():
        assert near_name(name, known) == meant


def test_error_names_the_file_or_the_override(project: Project) -> None:
    project.raw["phases"][0]["max_stepz"] = 3
    project.config_file.write_text(yaml.safe_dump(project.raw))
    message = refusal(file=project.config_file)
    assert message == f"{project.config_file}: phases.0.max_stepz: unknown key; did you mean max_steps?"


def test_unreadable_files(tmp_path: Path) -> None:
    assert (
        refusal(file=tmp_path / "no.yaml")
        == f"cannot read configuration {tmp_path}/no.yaml: no such file or directory; "
        "`jora init DIR` starts a project"
    )
    assert "is a directory" in refusal(file=tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xe9\n")
    assert "is not UTF-8 text: byte 6" in refusal(file=tmp_path / "latin.yaml")


def test_off_as_yaml_reads_it(project: Project) -> None:
    config = project.config("phases.0.sharing=off", "evaluate.sharing=off", "context.near_duplicates=off")
    assert (config.phases[0].sharing, config.evaluate.sharing) == ("off", "off")
    assert config.context.near_duplicates == "off" and config.phases[1].sharing == "auto"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-4", 1e-4),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("1:30:00", "1:30:00"),
        ("true", True),
        ("~", None),
    ],
)
def test_yaml_1_2(text: str, value: object) -> None:
    found = parse_yaml(f"key: {text}", "test")["key"]
    assert found == value and type(found) is type(value)


def test_merge_keys_and_anchors() -> None:
    text = "base: &base {r: 4, alpha: 8}\nown: {<<: *base, alpha: 16}\nsame: *base\n"
    shape = {"r": 4, "alpha": 8}
    assert parse_yaml(text, "test") == {"base": shape, "own": {"r": 4, "alpha": 16}, "same": shape}
    changed, _ = apply_overrides(parse_yaml(text, "test"), ["same.r=2"])
    assert changed["base"] == shape, "an override changes one place, not every alias of it"


@pytest.mark.parametrize(
    "text",
    [
        "base: &base {r: 4, alpha: 8}\nown:\n  <<: *base\n  r: 2\n",
        "base: &base {r: 4, alpha: 8}\nown:\n  r: 2\n  <<: *base\n",
        "a: &a {r: 4, alpha: 8}\nb: &b {r: 5, drop: 1}\nown: {<<: [*a, *b]}\n",
        "a: &a {r: 4}\nb: &b {<<: *a, alpha: 8}\nown: {<<: *b, drop: 0}\n",
        "- &first {stage: one, lora: {r: 4}}\n- {<<: *first, stage: two}\n",
        "own: {<<: {r: 4}, alpha: 8}\n",
    ],
)
def test_merges_are_those_of_another_parser(text: str) -> None:
    assert parse_yaml(f"key:\n  {text.rstrip().replace(chr(10), chr(10) + '  ')}\n", "test")["key"] == (
        yaml.safe_load(text)
    )


@pytest.mark.parametrize("cron", ["*/5 * * * *", "* * * * *", "*/10 6-22 * * 1-5", "* 2 * * *", "@daily"])
@pytest.mark.parametrize("form", ["schedule: {{cron: {}}}\n", "seed: 1\nschedule:\n  cron: {}\n"])
def test_a_cron_without_quotes_names_its_line(tmp_path: Path, cron: str, form: str) -> None:
    file = tmp_path / "nightly.yaml"
    file.write_text(form.format(cron))
    message = refusal(file=file)
    line = 3 if "seed" in form else 1
    assert message.startswith(f"{file}, line {line}, column ") and "needs quotes" in message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize("text", ["mesh: &m {data: *m}", "[" * 3000])
def test_nesting_without_end_is_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"^test: values are nested too deeply, or an alias contains itself"):
        parse_yaml(text, "test")


def test_numbers_as_people_write_them(project: Project) -> None:
    for text, value in {"1e-4": 1e-4, "2E3": 2e3, "1.e-2": 1e-2, ".5e-3": 5e-4, "+1e0": 1.0}.items():
        assert project.config(f"phases.0.optim.learning_rate={text}").phases[0].optim.learning_rate == value


def test_reading_runs_nothing_heavy() -> None:
    """`jora plan` must be quick: reading a configuration imports no numerics and no orchestrator."""
    import subprocess
    import sys

    code = (
        "import flows.configuration.load, flows.engine.plan, flows.engine.run_stage, sys;"
        "flows.configuration.load.load_config();"
        "heavy = ('jax', 'torch', 'numpy', 'pyarrow', 'faiss', 'transformers', 'prefect');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.fspath(REPOSITORY)
    )
    assert done.stdout.strip() == "[]"
