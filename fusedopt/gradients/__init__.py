"""Gradients between the backward pass and the step: noise, clipping, recording."""

from fusedopt.gradients.capture import capture
from fusedopt.gradients.clip import clip_grad_norm_, clip_grad_value_
from fusedopt.gradients.history import History
from fusedopt.gradients.noise import ExponentialGradientNoise, GradientNoise

__all__ = ["ExponentialGradientNoise", "GradientNoise", "History", "capture", "clip_grad_norm_", "clip_grad_value_"]
