"""tools/reproduce.py with a small grid on the digits: ``python small_grid.py CONFIG_FOLDER small ...``."""

import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tools"))

import grids  # noqa: E402
import reproduce  # noqa: E402
import runs  # noqa: E402

NETWORKS = {
    "mlp": ("lcw_lightning.MLP", {"in_features": 64, "num_classes": 10, "depth": 2, "width": 8}),
    "vgg": ("lcw_lightning.VGG19", {"in_channels": 1, "width": 1, "hidden_width": 8}),  # with dropout
}


def install(folder):
    """Write the configs of a grid ``small`` into the folder, and make it known."""
    for name, (class_path, settings) in NETWORKS.items():
        config = yaml.safe_load((ROOT / "configs" / "digits_mlp50.yaml").read_text())
        config["model"]["init_args"]["network"] = {"class_path": class_path, "init_args": settings}
        (folder / f"{name}_digits.yaml").write_text(yaml.safe_dump(config))
    runs.CONFIGS = folder
    methods = {method: grids.GRIDS["table1"].methods[method] for method in ("plain", "LCW")}
    grids.GRIDS["small"] = grids.Grid({"mlp": "MLP", "vgg": "VGG19"}, ("digits",), methods, last=2)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    reproduce.main(sys.argv[2:])
