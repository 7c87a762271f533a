"""A megatron-energon dataset of conversations, where that is installed."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHARDS = 2


def write_shards(folder: Path, records: Sequence[dict[str, Any]], images: Path, *parts: tuple[str, float]) -> Path:
    """A WebDataset of two shards with energon's description of it, made by its own tool."""
    from megatron.energon.epathlib import EPath
    from megatron.energon.flavors.webdataset import BaseWebdatasetFactory

    folder.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard{shard}.tar", "w") as tar:
            for number, record in list(enumerate(records))[shard::SHARDS]:
                names = record.get("image", [])
                members = {"json": json.dumps(record).encode()}
                for place, name in enumerate([names] if isinstance(names, str) else names):
                    members[f"{place}.png"] = (images / name).read_bytes()
                for name, content in members.items():
                    entry = tarfile.TarInfo(f"{number:04}.{name}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    names = [f"shard{shard}.tar" for shard in range(SHARDS)]
    BaseWebdatasetFactory.prepare_dataset(
        EPath(folder), names, split_parts_ratio=list(parts or [("train", 1.0)]), workers=1
    )
    (folder / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    return folder
