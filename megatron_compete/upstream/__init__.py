"""Every function, class and value of Megatron, torch and Python that is replaced while we run: one table, one mechanism.

`table.py` has a row for each: the symbol, why it is replaced, and the test that fails when upstream no longer needs it.
The replacement itself lives where its idea is at home and is put in place with

    with wrap_symbol("megatron.training.training:training_log", log): ...      # log(upstream, *args, **named)
    with replace_symbol("torch.cuda:current_device", lambda: CPU): ...

Outside of a `with` it stays until `undo()`, or for the life of the process. A test (`tests/upstream/test_table.py`) reads
the package's source and fails on an assignment to anything imported that does not come through here.
"""

from megatron_compete.upstream.replacement import Replacement, UpstreamChanged, replace_symbol, resolve, wrap_symbol

__all__ = ["Replacement", "UpstreamChanged", "replace_symbol", "resolve", "wrap_symbol"]
