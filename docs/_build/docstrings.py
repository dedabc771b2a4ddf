"""Docstrings as the site shows them: Sphinx's roles as Markdown, an entry for each argument, and none missing."""

import re
from typing import Any

from griffe import Class, Extension, Function, Object, get_logger

logger = get_logger(__name__)

DISPLAYED = re.compile(r"^( *)\.\. math:: *(.*(?:\n(?:\1 +\S.*|(?= *\n\1 +\S) *))*)", re.MULTILINE)
INLINE = re.compile(r":math:`([^`]*)`")
ROLE = re.compile(r":(?:class|func|meth|attr):`~?([^`]*)`")
PAGE = re.compile(r"\bdocs/((?:\w+/)?\w+)\.md\b")  # pages with docstrings are in a folder of docs/
LITERAL = re.compile(r"::$", re.MULTILINE)  # before an indented block, which Markdown takes for code anyway
TOGETHER = re.compile(r"^ {4}((?:\*{0,2}\w+,\s+)+\*{0,2}\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


def _displayed(found: re.Match[str]) -> str:
    lines = " ".join(found[2].split())
    rows = rf"\begin{{align*}}{lines}\end{{align*}}" if "&" in lines and "cases" not in lines else lines
    return f"{found[1]}$$\n{found[1]}{rows}\n{found[1]}$$\n"


def _one_by_one(found: re.Match[str]) -> str:
    return "\n".join(f"    {name}: {found[2]}" for name in re.split(r",\s+", found[1]))


def markdown(text: str) -> str:
    """Returns a docstring for the site: formulas, roles, and arguments that are described together each by itself."""
    text = INLINE.sub(r"$\1$", DISPLAYED.sub(_displayed, text))
    text = PAGE.sub(r"[\g<0>](../\1.md)", ROLE.sub(r"`\1`", LITERAL.sub(":", text)))
    return TOGETHER.sub(_one_by_one, text)


def needs_docstring(obj: Object) -> bool:
    """Tells whether an object is public, and not a method that says again what another class documents."""
    if not (obj.is_class or obj.is_function) or any(part.startswith("_") for part in obj.path.split(".")):
        return False
    again = isinstance(obj, Function) and any(str(decorator.value) == "override" for decorator in obj.decorators)
    local = obj.parent is not None and obj.parent.is_function
    protocol = isinstance(obj.parent, Class) and "Protocol" in map(str, obj.parent.bases)
    return not (again or local or protocol)


class Docstrings(Extension):
    """Rewrites docstrings before they are parsed, and warns where one is missing, which fails the build."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Does so for one object."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
        elif needs_docstring(obj):
            logger.warning("%s: %s has no docstring", obj.filepath, obj.path)
