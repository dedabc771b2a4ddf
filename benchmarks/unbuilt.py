"""Imported first where fusedopt need not be built yet: `make gpu` builds it, and until then needs its timers alone."""

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # as for the stages: what is measured is what stands here
try:
    import fusedopt  # noqa: F401
except ImportError:  # not built, or for another torch
    package = ModuleType("fusedopt")
    package.__path__ = [str(ROOT / "fusedopt")]
    sys.modules["fusedopt"] = package
