"""The parameters that the flows share, and the configuration that they name."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from flows.configuration.load import load_config
from flows.configuration.requirements import problems
from flows.configuration.schema import PipelineConfig
from flows.orchestration.prefect_server import FOLDER
from jora_core.base.errors import InputError
from jora_core.base.secrets import refuse_credentials


@dataclass(frozen=True)
class RunRequest:
    """The parameters that all flows have, as the run form or the API gives them.

    Attributes:
        configuration: path of a YAML file; None if `config` is given.
        changes: `key.path=value`, the values in YAML.
        config: a whole configuration, for callers that have one.
        force: run the selected stages even where their artifacts are current.
        dry_run: only say what would run.
    """

    configuration: str | None
    changes: list[str] | None
    config: PipelineConfig | None
    force: bool
    dry_run: bool

    def settings(self) -> PipelineConfig:
        """Return the configuration, with absolute paths.

        Raises:
            InputError: the file or a change is wrong, or no configuration is named.
        """
        if self.config is not None:
            if self.changes:
                raise InputError(
                    "changes belong to a named configuration; change the values of config itself"
                )
            # The form and the API pass the configuration as typed, with relative paths. A worker has another
            # working directory.
            return self.config.resolved()
        if self.configuration is None:
            raise InputError("configuration: this parameter is missing; give the path of a YAML file")
        changes = self.changes or []
        refuse_credentials(changes, "changes")
        # Relative paths mean the same as on the command line that registered the deployment.
        folder = Path(os.environ.get(FOLDER, "."))
        if not folder.is_dir():
            raise InputError(f"folder {folder}, from which the paths count, does not exist on this machine")
        with contextlib.chdir(folder):
            found = load_config(self.configuration, changes)
            # `jora serve` has checked the file. The changes may bring what a stage would refuse hours later,
            # such as a mesh that the model cannot be split over.
            fatal = [problem.message for problem in problems(found) if problem.fatal] if changes else []
            if fatal:
                known = {problem.message for problem in problems(load_config(self.configuration))}
                for message in fatal:
                    if message not in known:
                        raise InputError(f"changes: {message}")
        return found
