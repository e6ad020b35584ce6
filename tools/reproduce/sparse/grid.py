"""The grid of sparse activations: the sparsity paper's Table 2 and a few more rows, each also with LCW."""

from dataclasses import dataclass

from torch import nn

from lcw_lightning import activations
from lcw_lightning.theory.edge_of_chaos import edge_of_chaos_stds
from lcw_lightning.theory.variance_maps import VarianceMap

__all__ = ["METHODS", "NETWORKS", "PAPER_TABLE_2", "RATES", "Method"]

CLASSES = {
    "ReLU_tau": "ShiftedReLU",
    "ST": "SoftThreshold",
    "CReLU": "ClippedShiftedReLU",
    "CST": "ClippedSoftThreshold",
}
# As in configs/{network}_{data}.yaml.
NETWORKS = {"sparse_mlp100": "mnist", "sparse_cnn50": "cifar10"}
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # the paper's are 1e-4 for the MLP, 1e-3 for the CNN
# Validation measures sparsity on the test images. The statistics of training steps cost time and are not needed.
MONITOR = ["--shift_monitor.every_n_steps=0", "--shift_monitor.sparsity=true"]


@dataclass(frozen=True)
class Method:
    """An activation at the edge of chaos, in a network with plain weights or with LCW.

    The activation is the same with LCW, with the same tau and clip. edge_of_chaos_init sees the constraint and takes
    the biases' variance from LCW's variance map.

    Args:
        activation: The paper's name.
        sparsity: Fraction of zeros at initialization.
        slope: V'(q*) of the plain variance map, which determines the clip; ``None`` if nothing is clipped.
        lcw: Whether weights sum to zero.
    """

    activation: str
    sparsity: float
    slope: float | None = None
    lcw: bool = False

    @property
    def name(self) -> str:
        """Such as ``CReLU_0.85_0.7+LCW``."""
        slope = "" if self.slope is None else f"_{self.slope:g}"
        return f"{self.activation}_{self.sparsity:g}{slope}{'+LCW' * self.lcw}"

    def activation_module(self) -> nn.Module:
        """Return the activation."""
        options = {} if self.slope is None else {"slope": self.slope}
        return getattr(activations, CLASSES[self.activation])(sparsity=self.sparsity, **options)

    @property
    def map_slope(self) -> float:
        """V'(q*) of the variance map of the method's weights, plain or zero-sum."""
        activation = self.activation_module()
        stds = edge_of_chaos_stds(activation, zero_sum=self.lcw)
        return VarianceMap(activation, *stds, zero_sum=self.lcw).slope(1.0)

    @property
    def flags(self) -> list[str]:
        """The flags for ``lcw fit``."""
        option = "--model.network.activation"
        return [
            f"{option}=lcw_lightning.{CLASSES[self.activation]}",
            f"{option}.sparsity={self.sparsity:g}",
            *([] if self.slope is None else [f"{option}.slope={self.slope:g}"]),
            f"--constraint.kind={'lcw' if self.lcw else 'none'}",
            *MONITOR,
        ]


# Price et al., ICLR 2024, Table 2, by activation, sparsity and slope: test accuracy and sparsity of the MLP on MNIST
# (mean and standard deviation of five runs each), then of the CNN on CIFAR-10 (one run).
PAPER_TABLE_2 = {
    ("ReLU_tau", 0.5, None): (0.94, 0.002, 0.50, 0.001, 0.70, 0.52),
    ("ReLU_tau", 0.6, None): (0.76, 0.37, 0.49, 0.27, 0.68, 0.60),
    ("ReLU_tau", 0.7, None): (0.10, 0.00, 0.00, 0.00, 0.10, 0.00),
    ("ST", 0.5, None): (0.10, 0.00, 0.00, 0.00, 0.10, 0.00),
    ("ST", 0.6, None): (0.10, 0.00, 0.00, 0.00, 0.10, 0.00),
    ("ST", 0.7, None): (0.10, 0.00, 0.00, 0.00, 0.10, 0.00),
    ("CReLU", 0.6, 0.5): (0.92, 0.004, 0.60, 0.001, 0.70, 0.61),
    ("CReLU", 0.6, 0.7): (0.92, 0.003, 0.60, 0.004, 0.69, 0.61),
    ("CReLU", 0.6, 0.9): (0.92, 0.01, 0.60, 0.01, 0.69, 0.60),
    ("CReLU", 0.7, 0.5): (0.93, 0.01, 0.70, 0.002, 0.70, 0.70),
    ("CReLU", 0.7, 0.7): (0.92, 0.003, 0.70, 0.002, 0.69, 0.69),
    ("CReLU", 0.7, 0.9): (0.92, 0.01, 0.70, 0.01, 0.68, 0.69),
    ("CReLU", 0.8, 0.5): (0.94, 0.004, 0.80, 0.002, 0.64, 0.80),
    ("CReLU", 0.8, 0.7): (0.93, 0.01, 0.80, 0.01, 0.64, 0.78),
    ("CReLU", 0.8, 0.9): (0.94, 0.01, 0.79, 0.02, 0.65, 0.78),
    ("CReLU", 0.85, 0.5): (0.78, 0.16, 0.85, 0.004, 0.65, 0.85),
    ("CReLU", 0.85, 0.7): (0.94, 0.004, 0.85, 0.003, 0.65, 0.84),
    ("CReLU", 0.85, 0.9): (0.28, 0.37, 0.79, 0.04, 0.66, 0.83),
    ("CST", 0.5, 0.5): (0.92, 0.004, 0.51, 0.01, 0.69, 0.49),
    ("CST", 0.5, 0.7): (0.92, 0.01, 0.50, 0.004, 0.69, 0.48),
    ("CST", 0.5, 0.9): (0.92, 0.004, 0.49, 0.01, 0.71, 0.49),
    ("CST", 0.6, 0.5): (0.93, 0.01, 0.60, 0.003, 0.68, 0.59),
    ("CST", 0.6, 0.7): (0.92, 0.004, 0.60, 0.003, 0.67, 0.59),
    ("CST", 0.6, 0.9): (0.93, 0.004, 0.59, 0.01, 0.67, 0.57),
    ("CST", 0.7, 0.5): (0.94, 0.005, 0.70, 0.004, 0.68, 0.69),
    ("CST", 0.7, 0.7): (0.93, 0.005, 0.71, 0.01, 0.68, 0.67),
    ("CST", 0.7, 0.9): (0.27, 0.36, 0.41, 0.18, 0.68, 0.68),
    ("CST", 0.8, 0.5): (0.92, 0.04, 0.80, 0.001, 0.66, 0.79),
    ("CST", 0.8, 0.7): (0.95, 0.01, 0.80, 0.01, 0.65, 0.78),
    ("CST", 0.8, 0.9): (0.11, 0.01, 0.15, 0.01, 0.31, 0.18),
    ("CST", 0.85, 0.5): (0.76, 0.16, 0.85, 0.005, 0.63, 0.84),
    ("CST", 0.85, 0.7): (0.93, 0.01, 0.85, 0.01, 0.63, 0.83),
    ("CST", 0.85, 0.9): (0.14, 0.04, 0.11, 0.01, 0.29, 0.12),
}
OURS = [*(("ReLU_tau", sparsity, None) for sparsity in (0.8, 0.85, 0.9)), ("CReLU", 0.9, 0.7)]
SETTINGS = sorted([*PAPER_TABLE_2, *OURS], key=lambda setting: (list(CLASSES).index(setting[0]), setting[1]))
METHODS = {method.name: method for setting in SETTINGS for lcw in (False, True) if (method := Method(*setting, lcw))}
