"""Watching, checking and customising gradients; curvature."""

from torchref.autodiff.anomaly import (
    Anomaly,
    AnomalyError,
    detect_anomaly,
    enable_autograd_detection,
    first_anomaly,
)
from torchref.autodiff.curvature import AutogradOptimizer, fisher_diagonal, hvp, top_eigenvalue
from torchref.autodiff.custom import CustomGradientFunction, CustomLinear
from torchref.autodiff.debug import AutogradDebugger, Finding, verify_gradients
from torchref.autodiff.device import MemoryReport, device_info, memory_monitor
from torchref.autodiff.monitor import AutogradMonitor
from torchref.autodiff.profile import AutogradProfiler
from torchref.autodiff.transform import GradientAccumulator, GradientClipper
