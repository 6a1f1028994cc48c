"""Files of predicted reply links: `links.parquet` of an evaluation, and annotations of irc-disentanglement.

An annotation is a file `NAME.annotation.txt` with lines `PARENT MESSAGE -`, the input of the evaluators
`graph-eval.py` and `graph-to-cluster.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jora_core.base.atomic_files import write_bytes
from jora_core.base.errors import InputError
from retrieval.evaluation.threads.link_scores import Links

#: The right links, among the systems.
ANNOTATED = "annotated"
_SUFFIX = ".annotation.txt"


def write_links(path: Path, systems: Mapping[str, Links]) -> None:
    """Write one row for each link of each system: `system`, `context_id`, `number`, `parent`.

    Args:
        path: the Parquet file.
        systems: links by system and log.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        (system, log, message, parent)
        for system, logs in systems.items()
        for log in sorted(logs)
        for message, parent in sorted(logs[log])
    ]
    kinds = {"system": pa.string(), "context_id": pa.string(), "number": pa.int64(), "parent": pa.int64()}
    columns = zip(*rows, strict=True) if rows else [()] * len(kinds)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, kinds.values(), strict=True)]
    pq.write_table(pa.table(arrays, schema=pa.schema(list(kinds.items()))), path)


def write_annotations(path: Path, folder: Path) -> int:
    """Write the links of an evaluation as annotations: `FOLDER/SYSTEM/NAME.annotation.txt`.

    Args:
        path: `links.parquet` of the evaluation.
        folder: folder of the annotations.

    Returns:
        Number of files.

    Raises:
        InputError: the evaluation has no links, or two logs would have one file.
    """
    import pyarrow.parquet as pq

    if not path.is_file():
        raise InputError(
            f"{path}: this evaluation has no links; expected held-out threads with annotated messages"
        )
    files: dict[Path, tuple[str, list[str]]] = {}
    for row in pq.read_table(path).to_pylist():
        # Ids of logs may name folders, such as `dev/2004-11-15_03`.
        name = row["context_id"].replace("\\", "/").rpartition("/")[2] + _SUFFIX
        log, lines = files.setdefault(folder / row["system"] / name, (row["context_id"], []))
        if log != row["context_id"]:
            raise InputError(
                f"{name}: two held-out threads, {log} and {row['context_id']}, would have this file; rename "
                "one of them"
            )
        lines.append(f"{row['parent']} {row['number']} -\n")
    for file, (_, lines) in files.items():
        write_bytes(file, "".join(lines).encode())
    return len(files)
