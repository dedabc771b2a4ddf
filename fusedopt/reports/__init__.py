"""Reports on a finished run: pictures, numbers and a page that holds them all; see `write_report`."""

from fusedopt.extras import named_if_missing

with named_if_missing():
    from fusedopt.reports.attributions import Attributions, attribute, attribute_wrong, pick_wrong
    from fusedopt.reports.evaluation import Evaluation, evaluate
    from fusedopt.reports.figures import plot_class_accuracy, plot_confusion, plot_curves
    from fusedopt.reports.layers import plot_activations, plot_filters
    from fusedopt.reports.report import write_picture, write_report

__all__ = [
    "Attributions",
    "Evaluation",
    "attribute",
    "attribute_wrong",
    "evaluate",
    "pick_wrong",
    "plot_activations",
    "plot_class_accuracy",
    "plot_confusion",
    "plot_curves",
    "plot_filters",
    "write_picture",
    "write_report",
]
