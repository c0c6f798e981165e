"""Imported before mosaicml-streaming, which imports torchvision even for text: make that work beside any build of torch.

A torchvision built for another torch (the registry's is for CUDA) cannot load its operators, and fails at the two it
describes without asking whether they are there. Text needs none of them, so those are declared, without a body.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    DECLARED = torch.library.Library("torchvision", "DEF")
    DECLARED.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    DECLARED.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
