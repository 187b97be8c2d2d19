"""Watching, checking and customising gradients; curvature."""

from jaxarch.autodiff.debug import AutogradDebugger, Finding, verify_gradients
from jaxarch.autodiff.monitor import AutogradMonitor
