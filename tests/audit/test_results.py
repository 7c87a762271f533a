import json
from pathlib import Path

import pytest
import torch

from megatron_compete.audit.results import read_audit, read_matrices, write_audit
from megatron_compete.common.errors import CompeteError
from tests.audit.audits import layer_audit, matrices, small_audit


def test_what_was_written_is_read(tmp_path: Path) -> None:
    audit = small_audit(layers=2)
    write_audit(audit, matrices(2), tmp_path)
    assert read_audit(tmp_path) == audit == read_audit(tmp_path / "audit.json")
    found = read_matrices(tmp_path)
    assert found.keys() == matrices(2).keys()
    assert all(torch.equal(found[name], matrix) for name, matrix in matrices(2).items())


def test_parts_may_be_missing(tmp_path: Path) -> None:
    bare = layer_audit(0, competition=None, regret=None, geometry=None, against=None)
    audit = small_audit(layers=1, against=None)
    audit = type(audit)(**(vars(audit) | {"layers": [bare]}))
    write_audit(audit, {}, tmp_path)
    assert read_audit(tmp_path) == audit
    assert read_matrices(tmp_path) == {}


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    with pytest.raises(CompeteError, match=r"audit\.json cannot be read: No such file.*--out folder"):
        read_audit(tmp_path)
    for content in ("{", "[]", json.dumps({"format": 1, "layers": [{}]}), json.dumps({"layers": []})):
        file.write_text(content)
        with pytest.raises(CompeteError, match=r"audit\.json is not an audit"):
            read_audit(file)
    file.write_text(json.dumps({"format": 0}))
    with pytest.raises(CompeteError, match="another version: run the audit again"):
        read_audit(file)
