"""What the site needs beyond its pages: formulas as MathML, and the results that benchmarks left."""

import re
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

RESULTS = Path("benchmarks/results")
RESULT_LINK = re.compile(r"\(\.\./(benchmarks/results/[^)]*?)(\.md)?\)")
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


def _mathml(found: re.Match[str]) -> str:
    formula = unescape(found[3]).strip()
    if found[2] == "(":
        return convert(formula)
    return f'<div class="formula">{convert(formula, display="block")}</div>'


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas into MathML, which browsers draw by themselves."""
    return FORMULA.sub(_mathml, html)
