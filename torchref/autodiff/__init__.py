"""Watching, checking and customising gradients; curvature."""

from torchref.autodiff.debug import AutogradDebugger, Finding, verify_gradients
from torchref.autodiff.monitor import AutogradMonitor
