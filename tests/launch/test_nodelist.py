"""Slurm's short forms against lists written out, and against `scontrol show hostnames` where there is one."""

import shutil
import subprocess

import pytest

from megatron_compete.common.errors import CompeteError
from megatron_compete.launch.nodelist import expand_counts, expand_nodelist

LISTS = {
    "n1": "n1",
    "n1,n2": "n1 n2",
    "n[1-3]": "n1 n2 n3",
    "n[08-10,12],login": "n08 n09 n10 n12 login",
    "gpu-a[1-2]b[3-4]": "gpu-a1b3 gpu-a1b4 gpu-a2b3 gpu-a2b4",
    "r[1,3]n[001-002]-ib,x9": "r1n001-ib r1n002-ib r3n001-ib r3n002-ib x9",
    "n[9-11]": "n9 n10 n11",
    "cn7.cluster.example": "cn7.cluster.example",
}


@pytest.mark.parametrize(("text", "names"), LISTS.items())
def test_nodes(text: str, names: str) -> None:
    assert expand_nodelist(text) == names.split()


@pytest.mark.parametrize("text", LISTS)
def test_nodes_are_scontrols(text: str) -> None:
    if shutil.which("scontrol") is None:
        pytest.skip("no scontrol here")
    answer = subprocess.run(["scontrol", "show", "hostnames", text], capture_output=True, text=True)
    if answer.returncode != 0:
        pytest.skip(f"scontrol does not work here: {answer.stderr}")
    assert expand_nodelist(text) == answer.stdout.split()


@pytest.mark.parametrize(
    "text", ["", "n[1-", "n[]", "n[a-b]", "n[3-1]", "n1,,n2", "n1]", "n[1-99999999999]", f"n[{'1' * 5000}]"]
)
def test_no_list_of_nodes(text: str) -> None:
    with pytest.raises(CompeteError, match="is no list of nodes"):
        expand_nodelist(text)


def test_counts() -> None:
    assert expand_counts("4(x2),3") == [4, 4, 3]
    assert expand_counts("8") == [8]
    with pytest.raises(CompeteError, match=r"'2\(3\)' is no list of tasks per node"):
        expand_counts("2(3)")
    for text in ("1(x99999999)", "1" * 5000):
        with pytest.raises(CompeteError, match="is no list of tasks per node"):
            expand_counts(text)
