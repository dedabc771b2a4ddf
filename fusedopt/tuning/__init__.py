"""Search for good training settings with optuna: spaces, methods, plots. `fusedopt tune` is the command."""

from fusedopt.extras import named_if_missing

with named_if_missing():
    from fusedopt.tuning.plots import draw_search
    from fusedopt.tuning.search import METHODS, Search, best_trial, finished, open_study, run
    from fusedopt.tuning.space import PARAMETERS, Dimension, Setting, make_space

__all__ = [
    "METHODS",
    "PARAMETERS",
    "Dimension",
    "Search",
    "Setting",
    "best_trial",
    "draw_search",
    "finished",
    "make_space",
    "open_study",
    "run",
]
