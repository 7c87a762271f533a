"""The generators of the site's pages, which are no part of the package."""

import sys
from unittest import mock

from tests.docs.commands import ROOT

with mock.patch.object(sys, "path", [str(ROOT / "docs"), *sys.path]):
    from generate import commands, errors, mathml, pages, tables
    from generate.index import GENERATED

__all__ = ["GENERATED", "commands", "errors", "mathml", "pages", "tables"]
