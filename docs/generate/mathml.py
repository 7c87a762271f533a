"""TeX to MathML, which browsers draw themselves."""

import html as entities
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)


def with_mathml(html: str) -> str:
    """A page's HTML with the marked equations converted."""
    html = DISPLAY.sub(lambda found: convert(entities.unescape(found[1]).strip(), display="block"), html)
    return INLINE.sub(lambda found: convert(entities.unescape(found[1]).strip()), html)
