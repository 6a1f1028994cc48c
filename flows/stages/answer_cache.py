"""The cache of answers: what one system answered to the drawn records of one task.

The answers of the base model, and of a phase that was not trained again, stay the same when the records of
another task or another phase change. Each system has a file of its own, so an evaluation computes only what
changed. The answers of a system do not depend on the other systems of the same child process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.engine.code_files import reachable_sources
from jora_core.base.digests import file_digest, file_digests, json_digest, sealed_path, whole
from jora_core.base.record_columns import (
    ANSWERING_CHANNEL_COLUMNS,
    ANSWERING_COLUMNS,
    ANSWERING_OPTIONAL_COLUMNS,
    CHOICES_COLUMN,
    answer_schema,
    is_channel,
)
from jora_core.specs.answers import PredictSpec

Row = Mapping[str, Any]

# Fields of a spec that say where something is. Their content is part of the key instead.
_PLACES = {"model", "systems", "records", "output_dir", "compilation_cache_dir"}


class AnswerCache:
    """The cached answers of one spec's systems."""

    def __init__(self, folder: Path, model: str, spec: PredictSpec, records: Sequence[Row]) -> None:
        """Compute the part of the keys that all systems of the spec share.

        Args:
            folder: folder of the cache.
            model: digest of the base model.
            spec: the spec with all systems.
            records: the drawn records.
        """
        self._folder = folder
        self._systems = spec.systems
        sources = reachable_sources(("jora_core.commands.predict",), ("jora_core",))
        self._shared = {
            "model": model,
            "settings": spec.model_dump(mode="json", exclude=_PLACES),
            "records": json_digest([_read_values(row) for row in records]),
            "code": json_digest(dict(zip(sources, file_digests(list(sources.values())), strict=True))),
        }

    def read(self) -> dict[str, list[dict[str, Any]]]:
        """Return the answers of each system whose file is there and whole."""
        import pyarrow.parquet as pq

        paths = {name: self._path(name) for name in self._systems}
        return {name: pq.read_table(path).to_pylist() for name, path in paths.items() if whole(path)}

    def write(self, system: str, rows: Sequence[Row]) -> None:
        """Keep the answers of one system.

        Args:
            system: name of the system in the spec.
            rows: its answers, in the order of the records.

        Raises:
            InputError: the cache cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = answer_schema()
        kept = [{name: row.get(name) for name in schema.names} for row in rows]
        with sealed_path(self._path(system)) as temporary:
            pq.write_table(pa.Table.from_pylist(kept, schema=schema), temporary)

    def _path(self, system: str) -> Path:
        adapter = self._systems[system]
        # By content: an adapter that is trained again to the same bits has the same answers.
        files = {} if adapter is None else {p.name: file_digest(p) for p in sorted(adapter.glob("adapter_*"))}
        return self._folder / f"{json_digest({**self._shared, 'system': system, 'adapter': files})}.parquet"


def _read_values(row: Row) -> list[Any]:
    """Return what is read for an answer. The accepted answers, for example, decide only scores."""
    channel = ANSWERING_CHANNEL_COLUMNS if is_channel(row) else ()
    return [row[name] for name in (*ANSWERING_COLUMNS, *ANSWERING_OPTIONAL_COLUMNS, CHOICES_COLUMN, *channel)]
