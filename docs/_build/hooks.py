"""What the site needs beyond its pages: formulas as MathML, and the results that benchmarks left."""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

logger = get_plugin_logger(__name__)
RESULTS = Path("benchmarks/results")
RESULT_LINK = re.compile(r"\(\.\./(benchmarks/results/[^)]*?)(\.md)?\)")
IN_NOTEBOOK = re.compile(r"\$\$(?P<block>[^$]+)\$\$|\$(?P<line>[^$\n]+)\$")
SOURCE = re.compile(r"<pre.*?</pre>", re.DOTALL)
LEFT = re.compile(r'class="arithmatex"|<mi>(?:\\\w|&(?:amp;)?</mi>)|<p>\.\. \w+::|:(?:math|class|func):')
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Adds benchmarks/results, which pages link to as it lies in the repository."""
    for path in sorted((Path(config.config_file_path).parent / RESULTS).iterdir()):
        name = path.name.replace(".md", ".md.txt")  # not a page
        files.append(File.generated(config, f"{RESULTS}/{name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links to benchmarks/results at the copies, which lie in the site."""
    return RESULT_LINK.sub(lambda found: f"({found[1]}{'.md.txt' if found[2] else ''})", markdown)


def mathml(formula: str, block: bool) -> str:
    """Returns a formula as MathML, which browsers draw by themselves."""
    drawn = convert(unescape(formula).strip(), display="block" if block else "inline")
    return f'<div class="formula">{drawn}</div>' if block else drawn


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Draws the formulas of a page."""
    if page.file.src_uri.endswith(".ipynb"):
        return IN_NOTEBOOK.sub(lambda found: mathml(found["block"] or found["line"], bool(found["block"])), html)
    html = FORMULA.sub(lambda found: mathml(found[3], found[2] == "["), html)
    if left := LEFT.search(SOURCE.sub("", html)):
        logger.warning("%s: formula or role that has not been understood: %s", page.file.src_uri, left[0])
    return html
