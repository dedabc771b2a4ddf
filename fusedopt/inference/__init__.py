"""What a trained network is for: classifying image files, and running elsewhere."""

from fusedopt.data import read_image
from fusedopt.inference.export import FORMATS, export_onnx, export_pt2
from fusedopt.inference.files import Prediction, classify

__all__ = ["FORMATS", "Prediction", "classify", "export_onnx", "export_pt2", "read_image"]
