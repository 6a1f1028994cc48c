"""The embedded sample, and the default configuration of the commands."""

from __future__ import annotations

from pathlib import Path

from jora_core.base.errors import InputError

CONFIG_NAME = "jora.yaml"
_FLOWS = Path(__file__).resolve().parents[1]
SAMPLE_CONFIG = _FLOWS / "configs" / "sample.yaml"
STARTER_CONFIG = Path(__file__).with_name("starter.yaml")
# The sample's folders below `data/`; setup.py copies the same ones into the wheel.
SAMPLE_FOLDERS = ("sample", "tiny-llama", "tiny-embedder")
# In a wheel, and in a checkout.
_PLACES = (_FLOWS / "sample_data", _FLOWS.parent / "data")


def sample_data() -> Path:
    """Return the folder of the embedded sample's corpora and models.

    Raises:
        InputError: this installation has no embedded sample.
    """
    for place in _PLACES:
        if all((place / name).is_dir() for name in SAMPLE_FOLDERS):
            return place
    raise InputError(
        f"this installation lacks the embedded sample: expected it in {_PLACES[0]}; install the package again"
    )


def default_config() -> Path:
    """Return the path of the configuration for a command without CONFIG.

    The path is `jora.yaml` in the working directory. If that file is missing, a checkout takes the
    configuration of the embedded sample.

    Raises:
        InputError: neither file exists. The message names `jora init`.
    """
    own = Path(CONFIG_NAME)
    if own.exists():
        return own
    # Not for an installed package, where the sample would run on data that the user never chose.
    if _PLACES[1].joinpath(SAMPLE_FOLDERS[0]).is_dir():
        return SAMPLE_CONFIG
    raise InputError(
        f"no CONFIG is given and {own.resolve()} does not exist; run `jora init DIR` for a new project, or "
        "`jora init DIR --sample` for one that runs at once"
    )


def sample_config_text() -> str:
    """Return the text of the sample's configuration for a project folder that contains `data/`."""
    lines = SAMPLE_CONFIG.read_text(encoding="utf-8").splitlines(keepends=True)
    # The line names the recipe's place in a checkout; a project has no such file.
    kept = [line for line in lines if not line.startswith("#   jora run flows/configs/")]
    return "".join("root: .\n" if line.startswith("root:") else line for line in kept)
