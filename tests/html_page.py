"""A page of HTML, read."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """What stands in a page: its tags with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, content):
        self.texts.append(content)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
