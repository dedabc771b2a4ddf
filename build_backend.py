"""setuptools' build backend, for pip; where there is no setuptools, a line that says so in place of a traceback.

Everything else that can be missing is said by setup.py.
"""

try:
    from setuptools.build_meta import *  # noqa: F403
except ModuleNotFoundError as error:
    text = "fusedopt needs setuptools 77 or later to build, and there is none: pip install setuptools"
    raise SystemExit(text) from error
