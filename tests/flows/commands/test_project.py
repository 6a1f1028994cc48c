"""`jora init`: a project that loads, one that runs at once, and one from an installed wheel."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
import yaml

from flows import cli
from flows.commands.init import start_project
from flows.configuration.load import load_config
from flows.configuration.sample import SAMPLE_CONFIG, STARTER_CONFIG, default_config, sample_data
from jora_core.base.errors import InputError

ROOT = SAMPLE_CONFIG.parents[2]


# A commented key, such as `# embedder: …` or `#   - stage: …`; prose begins with a capital letter.
OPTIONAL_KEY = re.compile(r"^( *)# (?= *(?:- )?[a-z_]+:(?: |$))", re.MULTILINE)


def test_starter_loads_and_explains_itself(tmp_path: Path) -> None:
    config = load_config(start_project(tmp_path / "mine", sample=False))
    assert config.root == str(tmp_path / "mine")
    assert config.model.path == str(tmp_path / "mine" / "base-model")
    assert config.context.qa is not None and config.context.qa.source == str(tmp_path / "mine" / "documents")
    assert config.evaluate.qa_max_records > 0, "documents are scored without another setting"


def test_starter_loads_with_its_optional_keys(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(OPTIONAL_KEY.sub(r"\1", STARTER_CONFIG.read_text()))
    config = load_config(file)
    assert config.context.tables is not None and config.context.threads is not None
    assert config.context.embedder and config.context.qa is not None and config.context.qa.chunk_tokens
    assert [phase.stage for phase in config.phases] == ["finetune-structure", "finetune-task"]


def test_sample_project_is_the_sample_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = tmp_path / "demo"
    mine = load_config(start_project(demo, sample=True)).model_dump(mode="json")
    ours = load_config(SAMPLE_CONFIG).model_dump(mode="json")
    assert (mine.pop("project"), ours.pop("project")) == ("demo", "sample")
    assert yaml.safe_dump(mine).replace(str(demo), str(ROOT)) == yaml.safe_dump(ours)
    compared = filecmp.dircmp(demo / "data", sample_data())
    assert not compared.left_only and not compared.diff_files and compared.common_dirs
    monkeypatch.chdir(demo)
    assert default_config() == Path("jora.yaml") and load_config().model.path == str(demo / "data/tiny-llama")


@pytest.mark.parametrize("sample", [False, True])
def test_nothing_is_overwritten(tmp_path: Path, sample: bool) -> None:
    (tmp_path / "jora.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match=r"jora\.yaml exists already; choose another folder"):
        start_project(tmp_path, sample)
    assert [path.name for path in tmp_path.iterdir()] == ["jora.yaml"]


def test_no_configuration_at_all_names_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_config() == SAMPLE_CONFIG, "a checkout has the sample"
    monkeypatch.setattr("flows.configuration.sample._PLACES", (tmp_path / "a", tmp_path / "b"))
    with pytest.raises(InputError, match="run `jora init DIR`"):
        load_config()
    with pytest.raises(InputError, match="this installation lacks the embedded sample"):
        start_project(tmp_path / "demo", sample=True)


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["jora", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    declared = [
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version")
    ]
    assert capsys.readouterr().out.split() == ["jora", declared[0].split('"')[1]]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_installed_wheel_runs_the_sample(tmp_path: Path) -> None:
    """What a user does after `pip install`: the wheel holds all that the sample needs.

    The dependencies come from this environment, so that nothing is downloaded.
    """
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
    # A copy: the build leaves folders behind, and would pick up what an earlier one left.
    unwanted = shutil.ignore_patterns(".*", "tests", "docs", "runs", "__pycache__", "*.egg-info")

    def left_out(folder: str, names: list[str]) -> set[str]:
        # `build` below the root is setuptools' own; `retrieval/build` is a package.
        return unwanted(folder, names) | ({"build"} if Path(folder) == ROOT else set())

    source = shutil.copytree(ROOT, tmp_path / "source", ignore=left_out)
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", source)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    # `addsitedir` would also read the .pth files there, and so find this checkout.
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    jora = tmp_path / "env" / "bin" / "jora"
    assert str(packages) in run(python, "-c", "import flows; print(flows.__file__)")
    refused = subprocess.run([jora, "plan"], cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert refused.returncode == 2 and "jora init DIR --sample" in refused.stderr
    run(jora, "init", "demo", "--sample")
    demo = tmp_path / "demo"
    assert "no artifact" in run(jora, "plan", cwd=demo)
    said = run(jora, "run", cwd=demo)
    assert "reply@1" in said and (demo / "runs" / "report.html").is_file()
    assert run(jora, "plan", cwd=demo).count("up to date") == 6
