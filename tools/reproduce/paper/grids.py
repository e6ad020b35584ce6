"""The grids of the paper's Section 6, and the numbers of its Table 1."""

from dataclasses import dataclass

__all__ = ["GRIDS", "PAPER_TABLE_1", "Grid"]

DRAWN = "--minibatch_init.granularity=none"  # no initialization from data
BN = "--model.network.norm=batch"
KINDS = {
    "LCW": ["--constraint.kind=lcw"],
    "WN": ["--constraint.kind=wn"],
    "CWN": ["--constraint.kind=cwn"],
    "SN": ["--constraint.kind=sn", DRAWN],
}
PLAIN = ["--constraint.kind=none", DRAWN]


@dataclass(frozen=True)
class Grid:
    """All combinations of networks, data sets and methods.

    Args:
        networks: The paper's names, by those in ``configs/{network}_{data}.yaml``.
        data: Data sets, as in the configs' names.
        methods: The flags for ``lcw fit``, by the paper's names.
        last: The table holds the mean of so many last epochs.
        scaled: Whether ``--epochs`` scales the whole schedule, or trains its first epochs alone.
    """

    networks: dict[str, str]
    data: tuple[str, ...]
    methods: dict[str, list[str]]
    last: int
    scaled: bool = False


GRIDS = {
    "fig5": Grid(
        networks={"mlp50": "MLP"},
        data=("cifar10", "cifar100"),
        methods={
            "plain": PLAIN,
            **KINDS,
            "BN": [*PLAIN, BN],
            "SL": [*PLAIN, "--model.network.norm=standardization"],
            "BN+SL": [*PLAIN, "--model.network.norm=batch+standardization"],
            "BN+init": ["--constraint.kind=none", BN],  # the control of BN+LCW, which starts from data too
            **{f"BN+{method}": [*flags, BN] for method, flags in KINDS.items()},
        },
        last=1,
    ),
    "table1": Grid(
        networks={"vgg19": "VGG19", "resnet18": "ResNet18"},
        data=("cifar10", "cifar100"),
        methods={"plain": PLAIN, **KINDS},
        last=10,
        scaled=True,
    ),
}

# Kutsuna, Linearly Constrained Weights, Table 1: test accuracy and test loss, means of the last ten epochs.
PAPER_TABLE_1 = {
    ("vgg19", "cifar10", "plain"): (0.936, 0.354),
    ("vgg19", "cifar10", "LCW"): (0.938, 0.332),
    ("vgg19", "cifar10", "WN"): (0.931, 0.391),
    ("vgg19", "cifar10", "CWN"): (0.934, 0.372),
    ("vgg19", "cifar10", "SN"): (0.936, 0.358),
    ("resnet18", "cifar10", "plain"): (0.952, 0.204),
    ("resnet18", "cifar10", "LCW"): (0.952, 0.187),
    ("resnet18", "cifar10", "WN"): (0.951, 0.206),
    ("resnet18", "cifar10", "CWN"): (0.948, 0.216),
    ("resnet18", "cifar10", "SN"): (0.952, 0.206),
    ("vgg19", "cifar100", "plain"): (0.732, 1.788),
    ("vgg19", "cifar100", "LCW"): (0.741, 1.569),
    ("vgg19", "cifar100", "WN"): (0.725, 1.914),
    ("vgg19", "cifar100", "CWN"): (0.727, 1.827),
    ("vgg19", "cifar100", "SN"): (0.733, 1.644),
    ("resnet18", "cifar100", "plain"): (0.769, 0.978),
    ("resnet18", "cifar100", "LCW"): (0.770, 0.955),
    ("resnet18", "cifar100", "WN"): (0.777, 0.947),
    ("resnet18", "cifar100", "CWN"): (0.781, 0.949),
    ("resnet18", "cifar100", "SN"): (0.780, 1.015),
}
