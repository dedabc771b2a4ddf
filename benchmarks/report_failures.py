"""A pytest plugin: says which test has failed when it fails, not at the end of a run that may be cut off before.

A line for each in the log, and one of JSON in the file that ``FUSEDOPT_LINES`` names.
"""

import json
import os
from pathlib import Path

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called for every phase of every test; with xdist, in the process that collects the results."""
    if report.failed:
        _tell(report.nodeid, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported fails, too."""
    if report.failed:
        _tell(report.nodeid, report)


def _tell(name: str, report: pytest.TestReport | pytest.CollectReport) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    error = (crash.message if crash else str(report.longrepr)).strip().split("\n")[0][:300]
    print(f"\nFAILED {name}: {error}", flush=True)
    if lines := os.environ.get("FUSEDOPT_LINES"):
        with Path(lines).open("a") as file:
            line = {"kind": "failure", "what": name, "error": error, "stage": os.environ.get("FUSEDOPT_STAGE")}
            file.write("\n" + json.dumps(line) + "\n")
