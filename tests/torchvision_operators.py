"""A pytest plugin: torchvision and num2words are there, which transformers' own processors demand.

torchvision's wheel for a GPU can't load its compiled operators beside a CPU build of torch, and then fails on import
where it describes them. Declared first, without a body, they are never called: processors resize and cast only.
"""

from __future__ import annotations

import num2words  # noqa: F401 - SmolVLM's processor demands it
import torch

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision
except RuntimeError:  # operator torchvision::nms does not exist
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision


def pytest_report_header() -> str:
    return f"torchvision {torchvision.__version__} beside torch {torch.__version__}"
