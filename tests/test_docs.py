"""The pages under docs/: every snippet runs, and prints what the page says."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_print_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    assert snippets
    namespace = {"__name__": page.stem}
    for snippet in snippets:
        exec(compile(snippet, str(page), "exec"), namespace)
        expected = re.findall(r"^# -> (.*)$", snippet, re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == expected


def test_pictures_and_commands_of_the_pages_are_there():
    for page in PAGES:
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / picture).is_file()
