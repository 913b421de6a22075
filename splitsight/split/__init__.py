"""Cut any PyTorch model in two, anywhere that a small set of tensors crosses.

The model is traced into its dataflow graph (``torch.export``, else ``torch.fx``). A set of values C is a split
point when every path from the inputs to the outputs passes through C and nothing else computed before C is
needed after it. Then F1 computes C from the inputs, F2 computes the outputs from C, no work is done twice, and

    F2(F1(x)) = model(x), bit for bit in eval mode,

because both halves run the very operators of the model, in its order, on its own weights (which are shared,
not copied). That equality is verified on an example before the halves are handed out.

Two things lie outside of it. Memory layout: where a model hands on a transposed view, kernels may sum in another
order once the tensor has been made contiguous by a wire (or, for models that write in place, by F2's own copy),
and the last bits of the output differ. Gradient mode: PyTorch's attention layers have a fast path without
gradients; such models are cut around the layer (``torch.fx``), which keeps the path they take.

Sizes other than the batch are constants of the graph, and so are types and the branches taken, so the halves
refuse inputs and features of another size. Tracing runs the model on a copy: the caller's model and the random
number generators are afterwards as they were.

The package: ``model`` (what may be given, and the copy), ``tracing`` (from the model to a graph), ``program``
(the graph and what was measured on it), ``cuts`` (which sets of values are points), ``halves`` (F1 and F2).
"""

from __future__ import annotations

from splitsight.features import FeatureSpec
from splitsight.split.cuts import CutPoint, Traced
from splitsight.split.halves import First, Second, half_state
from splitsight.split.tracing import cut_points, split, trace

__all__ = ["CutPoint", "FeatureSpec", "First", "Second", "Traced", "cut_points", "half_state", "split", "trace"]
