"""The JORA paper's listing, run as printed, and what stands behind it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jora_core
from jora_core.base.errors import InputError

DATA = Path(__file__).resolve().parents[2] / "data"


@pytest.fixture()
def alpaca_json(alpaca_rows, tmp_path) -> Path:
    rows = [{k: row[k] for k in ("instruction", "input", "output")} for row in alpaca_rows(contexts=10)]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture()
def sample_json(tmp_path) -> Path:
    """Sixty questions on the sample's documents as an Alpaca file."""
    files = (DATA / "sample" / "documents.jsonl", DATA / "sample" / "questions.jsonl")
    documents, questions = ([json.loads(line) for line in path.open()] for path in files)
    texts = {document["id"]: document["text"] for document in documents}
    rows = [
        {
            "instruction": "Answer the question from the document.",
            "input": f"{texts[question['document_id']]}\n\n{question['question']}",
            "output": question["answers"][0],
        }
        for question in questions[:60]
    ]
    path = tmp_path / "sample.json"
    path.write_text(json.dumps(rows))
    return path


def test_listing_of_the_paper_and_the_merger(sample_json, tmp_path):
    model_size, jax_path, hf_path = "7B", str(tmp_path / "llama2-7B.pickle"), str(DATA / "tiny-llama")
    dataset_path, checkpoint_path = str(sample_json), str(tmp_path / "checkpoints")

    from jora_core import ParallamaConfig, generate_alpaca_dataset, train_lora

    config = ParallamaConfig(MODEL_SIZE=model_size, JAX_PARAMS_PATH=jax_path, LLAMA2_META_PATH=hf_path)
    dataset = generate_alpaca_dataset(dataset_path, "train", config)
    train_lora(config, dataset, checkpoint_path)

    final = Path(checkpoint_path) / "jax_lora_final"
    result = json.loads((final / "result.json").read_text())
    rows = [json.loads(line) for line in (final / "metrics.jsonl").read_text().splitlines()]
    assert result["steps"] == len(rows) >= 7
    assert json.loads((final / "adapter_config.json").read_text())["target_modules"] == ["q_proj", "v_proj"]

    merged = tmp_path / "merged"
    done = subprocess.run(
        [sys.executable, "-m", "jora_core.hf", hf_path, checkpoint_path, str(merged)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(merged)
    ids = tokenizer("the lamp and the river", return_tensors="pt").input_ids
    base = AutoModelForCausalLM.from_pretrained(hf_path, dtype=torch.float32)
    with torch.no_grad():
        before = base(ids).logits.numpy()
        adapted = peft.PeftModel.from_pretrained(base, final)(ids).logits.numpy()
        loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
        found = loaded(ids).logits.numpy()
    np.testing.assert_allclose(found, adapted, atol=1e-4)
    assert np.abs(found - before).max() > 1e-4


def test_defaults_are_the_papers():
    config = jora_core.ParallamaConfig()
    assert (config.LORA_R, config.LORA_ALPHA, config.LORA_DROPOUT, config.LR) == (16, 16, 0.05, 1e-4)
    assert (config.BATCH_SIZE, config.N_ACCUMULATION_STEPS, config.MAX_SEQ_LEN) == (1, 8, 2000)
    assert (config.N_EPOCHS, config.SEED, config.NUM_GPUS) == (7, 420, None)


def test_prompt_is_stanford_alpacas(tmp_path):
    path = tmp_path / "two.jsonl"
    rows = [
        {"instruction": "Name it.", "input": "a lamp", "output": "lamp"},
        {"instruction": "Say hello.", "input": "", "output": "hello"},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows * 5) + "\n")
    dataset = jora_core.AlpacaDataset(path=path, alpaca_mix=0.0)
    assert len(dataset) == 8
    assert dataset[0] == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nName it.\n\n"
        "### Input:\na lamp\n\n### Response:\n",
        "lamp",
    )
    assert dataset[1][0].endswith("request.\n\n### Instruction:\nSay hello.\n\n### Response:\n")


def test_splits_share_no_context_and_only_train_is_mixed(alpaca_json, tmp_path, capsys):
    config = jora_core.ParallamaConfig()
    train = jora_core.generate_alpaca_dataset(alpaca_json, "train", config, split_percentage=0.7)
    test = jora_core.generate_alpaca_dataset(alpaca_json, "test", config, split_percentage=0.7)
    own = train.records[: len(train) - train.mixed]
    assert len(own) + len(test) == 30 and test.mixed == 0
    assert not {r.context for r in own} & {r.context for r in test.records}
    assert train.mixed == int(0.3 * len(own)) > 0
    assert "built-in set" in capsys.readouterr().err
    again = jora_core.generate_alpaca_dataset(alpaca_json, "train", config, split_percentage=0.7)
    assert again.records == train.records
    other = jora_core.ParallamaConfig(SEED=1)
    assert jora_core.generate_alpaca_dataset(alpaca_json, "train", other).records[-1] != train.records[-1]


def test_the_mix_comes_from_the_file_that_is_named_or_stands_beside(alpaca_json, tmp_path, monkeypatch):
    general = [{"instruction": f"General {i}.", "input": "", "output": str(i)} for i in range(50)]
    named = tmp_path / "general.json"
    named.write_text(json.dumps(general))
    config = jora_core.ParallamaConfig()
    monkeypatch.delenv("JORA_ALPACA_PATH", raising=False)
    data = jora_core.generate_alpaca_dataset(alpaca_json, "train", config, alpaca_path=named)
    mixed = data.records[len(data) - data.mixed :]
    assert len({r.id for r in mixed}) == data.mixed > 0
    assert all(r.instruction.startswith("General") for r in mixed)
    named.rename(tmp_path / "alpaca_data_cleaned.json")
    beside = jora_core.generate_alpaca_dataset(alpaca_json, "train", config)
    assert list(beside) == list(data)
    whole = jora_core.generate_alpaca_dataset(tmp_path / "alpaca_data_cleaned.json", "train", config)
    assert whole.mixed == 0 and len(whole) == 40


def test_a_files_own_split_decides(alpaca_rows, write_rows, tmp_path):
    rows = alpaca_rows(contexts=4)
    for row in rows[-3:]:
        row["split"] = "test"
    path = write_rows(tmp_path / "records.parquet", rows)
    assert [r.id for r in jora_core.AlpacaDataset(path=path, split="test").records] == [
        "c3-q0",
        "c3-q1",
        "c3-q2",
    ]


def test_bad_input_is_named(alpaca_json, tiny_model, tmp_path):
    dataset = jora_core.AlpacaDataset(path=alpaca_json)
    with pytest.raises(InputError, match="LLAMA2_META_PATH"):
        jora_core.train_lora(jora_core.ParallamaConfig(), dataset, tmp_path / "out")
    pickled = tmp_path / "params.pickle"
    pickled.write_bytes(b"x")
    config = jora_core.ParallamaConfig(JAX_PARAMS_PATH=pickled, LLAMA2_META_PATH=tiny_model)
    with pytest.raises(InputError, match="pickles are never read"):
        jora_core.train_lora(config, dataset, tmp_path / "out")
    config = jora_core.ParallamaConfig(LLAMA2_META_PATH=tiny_model, LORA_R=0)
    with pytest.raises(InputError, match=r"ParallamaConfig: lora\.r"):
        jora_core.train_lora(config, dataset, tmp_path / "out")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    with pytest.raises(InputError, match=r"broken\.jsonl, line 2: broken JSON"):
        jora_core.AlpacaDataset(path=broken)
    broken.write_text('[{"instruction": "a"}]')
    with pytest.raises(InputError, match=r"record 0: no text in field 'output'"):
        jora_core.AlpacaDataset(path=broken)
    with pytest.raises(InputError, match=r"cannot read .*absent"):
        jora_core.AlpacaDataset(path=tmp_path / "absent.json")


def test_gemma_pair_trains_a_gemma(alpaca_json, tiny_model, tmp_path):
    import jax

    from jora_core.architecture.model_config import ModelConfig
    from jora_core.parameters.initialize import init_params
    from jora_core.weights.adapter_folder import load_adapter
    from jora_core.weights.checkpoint_folder import save_params

    folder = tmp_path / "gemma"
    shutil.copytree(tiny_model, folder)
    fields = json.loads((tiny_model / "config.json").read_text()) | {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu",
        "head_dim": 16,
        "num_key_value_heads": 1,
    }
    shape = ModelConfig.from_fields(fields)
    save_params(init_params(shape, jax.random.key(0)), shape, folder)
    config = jora_core.ParagemmaConfig(
        GEMMA_MODEL_PATH=folder,
        MODEL_VERSION="2b-it",
        NUM_SHARDS=1,
        LORA_R=4,
        MAX_SEQ_LEN=256,
        N_EPOCHS=2,
        LR=5e-3,
    )
    dataset = jora_core.generate_alpaca_dataset_gemma(alpaca_json, "train", config, alpaca_mix=0.0)
    result = jora_core.train_lora_gemma(config, dataset, tmp_path / "out", verbose=False)
    final = tmp_path / "out" / "jax_lora_final"
    losses = [json.loads(line)["loss"] for line in (final / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == result["steps"] >= 2
    assert losses[-1] < losses[0]
    adapter, _ = load_adapter(final, shape)
    assert adapter.weights["q_proj"].b.shape == (2, 64, 4)
    assert adapter.weights["v_proj"].b.shape == (2, 16, 4)
    assert np.abs(np.asarray(adapter.weights["v_proj"].b)).max() > 0


def test_gemma_pair_says_what_is_wrong(alpaca_json, tmp_path):
    folder = tmp_path / "gemma"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3n", "hidden_size": 8}))
    config = jora_core.ParagemmaConfig(GEMMA_MODEL_PATH=folder)
    dataset = jora_core.generate_alpaca_dataset_gemma(alpaca_json, "train", config, alpaca_mix=0.0)
    with pytest.raises(InputError, match="architecture gemma3n"):
        jora_core.train_lora_gemma(config, dataset, tmp_path / "out")
    with pytest.raises(InputError, match="set GEMMA_MODEL_PATH"):
        jora_core.train_lora_gemma(jora_core.ParagemmaConfig(), dataset, tmp_path / "out")


def test_merger_refuses_bad_folders(tiny_weights, tmp_path, capsys):
    from jora_core.hf import main

    assert main([str(tiny_weights), str(tmp_path), str(tmp_path / "out")]) == 2
    assert "no adapter_config.json" in capsys.readouterr().err
    assert main([str(tiny_weights), str(tmp_path), str(tiny_weights)]) == 2
    assert "is the base model itself" in capsys.readouterr().err
