"""Watching, checking and customising gradients; curvature."""

from jaxarch.versions import check_versions

check_versions()

from jaxarch.autodiff.anomaly import (
    Anomaly,
    AnomalyError,
    detect_anomaly,
    enable_autograd_detection,
    first_anomaly,
)
from jaxarch.autodiff.curvature import AutogradOptimizer, fisher_diagonal, hvp, top_eigenvalue
from jaxarch.autodiff.custom import CustomGradientFunction, CustomLinear
from jaxarch.autodiff.debug import AutogradDebugger, Finding, verify_gradients
from jaxarch.autodiff.device import MemoryReport, device_info, memory_monitor
from jaxarch.autodiff.monitor import AutogradMonitor
from jaxarch.autodiff.profile import AutogradProfiler
from jaxarch.autodiff.transform import GradientAccumulator, GradientClipper
