"""The one build step that pyproject.toml cannot express: the wheel carries the embedded sample.

The sample's files stay in `data/`, beside the scripts that make them. A checkout, and `pip install -e` of it,
read them there; a wheel holds a copy in `flows/sample_data`, from which `jora init --sample` copies.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SAMPLE_FOLDERS = ("sample", "tiny-llama", "tiny-embedder")


class BuildWithSample(build_py):
    """Build the packages, then add the sample to the package `flows`."""

    def run(self) -> None:
        """Build; an editable install copies nothing, because it reads `data/` itself."""
        super().run()
        if self.editable_mode:
            return
        for name in SAMPLE_FOLDERS:
            target = Path(self.build_lib, "flows", "sample_data", name)
            shutil.copytree(Path("data") / name, target, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithSample})
