"""Monte Carlo of sparse activations at initialization: q and gradients after 100 layers of 300 units."""

import argparse
import math
from decimal import Decimal
from itertools import product

import numpy as np
import torch
from torch import nn

from lcw_lightning import MLP, constrain
from lcw_lightning.analysis.preflight import monte_carlo
from lcw_lightning.initialization.edge_of_chaos import edge_of_chaos_init_
from tools.readme import head, made_on, rounded, row, show
from tools.records import environment, read_json, write_json
from tools.reproduce.sparse.grid import Method

DEPTH, WIDTH, DRAWS = 100, 300, 100
RESAMPLES = 2000
# Median and 90th percentile of q^100, then of log10(||delta_1|| / ||delta_100||), of 100 plain networks each. They were
# computed for this project with other code, and rounded. "-" means that there is no reference.
REFERENCE = {
    ("ReLU_tau", 0.5, None): "0.43 1.5 -0.2 0.1",
    ("ReLU_tau", 0.6, None): "1.0 2e5 0.0 3.3",
    ("ReLU_tau", 0.7, None): "1e3 2e16 1.7 8.7",
    **{("ReLU_tau", sparsity, None): "- - - -" for sparsity in (0.8, 0.85, 0.9)},
    ("ST", 0.5, None): "4e10 8e22 6.5 12",
    ("CReLU", 0.8, 0.9): "1.0 1.5 -0.1 1.2",
    ("CReLU", 0.85, 0.5): "1.0 1.2 -0.9 0.0",
    ("CReLU", 0.85, 0.7): "1.0 1.2 -0.7 0.3",
    ("CReLU", 0.85, 0.9): "1.1 1.7 0.3 2.6",
    ("CReLU", 0.9, 0.5): "1.0 1.1 -1.2 -0.1",
    ("CReLU", 0.9, 0.7): "1.0 1.2 -0.7 0.5",
    ("CReLU", 0.9, 0.9): "1.7 3.9 2.4 10.5",
    ("CST", 0.7, 0.9): "1.0 1.4 0.4 2.5",
    ("CST", 0.8, 0.9): "1.9 3.8 2.7 10.7",
    ("CST", 0.85, 0.9): "4.8 5.9 7.9 15",
}
METHODS = [Method(*setting, lcw) for setting, lcw in product(REFERENCE, (False, True))]
HEAD = head(
    *("activation", "sparsity", "V'(q*)", "weights", "q, median", "ref.", "q, 90th percentile", "ref."),
    *("growth, median", "ref.", "growth, 90th percentile", "ref."),
)


def main(arguments: argparse.Namespace) -> None:
    """Draw the networks that the JSON file lacks and print the table, or report."""
    path = arguments.output / "preflight.json"
    rows = read_json(path)
    for number, method in enumerate(METHODS if not arguments.report else ()):
        print(f"[{number + 1}/{len(METHODS)}] {method.name}{': there already' * (method.name in rows)}", flush=True)
        if method.name not in rows:
            rows[method.name] = {**draw(method, seed=number), "device": "cpu", **environment()}
            write_json(path, rows)
    show("preflight", table(rows), write=arguments.report)


def draw(method: Method, seed: int) -> dict:
    """Draw networks; return q of the last hidden layer, and log10 of the gradient's growth from there to the first.

    Each network has its own input and its own gradient at the last hidden layer, both standard normal. Numbers that
    are not finite are ``None``.
    """
    torch.manual_seed(seed)
    model, inputs = network(method), torch.empty(1, WIDTH)
    to_last = nn.Sequential(*model.hidden[:-1], model.hidden[-1].linear)

    def step() -> None:
        preactivation = to_last(inputs)
        preactivation.backward(torch.randn_like(preactivation))

    ends = {"first": model.hidden[0].linear, "last": model.hidden[-1].linear}
    found = monte_carlo(ends, lambda: edge_of_chaos_init_(model, inputs.normal_()), step, DRAWS)
    numbers = {"q": found.last_q.tolist(), "growth": found.gradient_growth.tolist()}
    finite = {name: [x if math.isfinite(x) else None for x in values] for name, values in numbers.items()}
    return {"depth": DEPTH, "width": WIDTH, "seed": seed, **finite}


def network(method: Method) -> MLP:
    """Return a network whose weights are not drawn yet."""
    model = MLP(WIDTH, 10, depth=DEPTH, width=WIDTH, activation=method.activation_module)
    if method.lcw:
        constrain(model, "lcw")
    return model


def statistics(drawn: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return median and 90th percentile of log10 q, then of the growth; and the same of each bootstrap resample."""
    # Numbers that are not finite become 300, since quantiles cannot be interpolated between infinite numbers.
    log_q = [300.0 if x is None else math.log10(x) for x in drawn["q"]]
    values = np.array([log_q, [300.0 if x is None else x for x in drawn["growth"]]])
    chosen = np.random.default_rng(0).integers(len(log_q), size=(RESAMPLES, len(log_q)))

    def both(samples: np.ndarray) -> np.ndarray:
        return np.quantile(samples, [0.5, 0.9], axis=-1)

    found, resampled = both(values), both(values[:, chosen])
    return found.T.flatten(), resampled.transpose(2, 1, 0).reshape(RESAMPLES, 4)


def differs(reference: str, found: float, resampled: np.ndarray, is_log: bool) -> bool:
    """Return whether a rounded number differs by more than two samples of this size do in 95 of 100 cases."""
    number, half = Decimal(reference), Decimal((0, (5,), Decimal(reference).as_tuple().exponent - 1))
    low, high = (math.log10(end) if is_log else float(end) for end in (number - half, number + half))
    shuffled = np.random.default_rng(1).permutation(resampled)
    least, most = found + np.quantile(resampled - shuffled, [0.025, 0.975])
    return bool(high < least or low > most)


def table(rows: dict) -> str:
    """Return the Markdown table, and a line that says how it was made."""
    mine = {method: rows[method.name] for method in METHODS if method.name in rows}
    beyond = sum(line(method, drawn).count("*") for method, drawn in mine.items())
    known = 4 * sum(not method.lcw and "-" not in REFERENCE[setting(method)].split() for method in mine)
    caption = (
        f"Hidden layers: {DEPTH} of {WIDTH} units, weights drawn by edge_of_chaos_init_ for q* = 1; {DRAWS} networks a "
        "row, each with a standard normal input, and a standard normal gradient at the last hidden layer. q is the "
        "mean square of that layer's preactivations; growth is log10 of the gradient's norm at the first layer over "
        "that at the last. In brackets 95% bootstrap intervals. V'(q*) is that of the variance map that the weights "
        "have; with LCW tau and clip are those of the plain row. Ref.: the same quantities of plain weights, computed "
        f"with other code from 100 networks; {beyond} of {known} (marked *) differ by more than 95% of pairs of such "
        "samples do."
    )
    lines = [line(method, drawn) for method, drawn in mine.items()]
    return "\n".join([*HEAD, *lines, "", f"{caption} Made on {made_on(list(mine.values()))}"])


def setting(method: Method) -> tuple[str, float, float | None]:
    """Return what the plain method and its twin with LCW share."""
    return method.activation, method.sparsity, method.slope


def line(method: Method, drawn: dict) -> str:
    """Return a method's row of the table."""
    cells = [method.activation, f"{method.sparsity:g}", f"{method.map_slope:.2f}", "LCW" if method.lcw else "plain"]
    found, resampled = statistics(drawn)
    references = REFERENCE[setting(method)].split()
    for number, reference in enumerate(references):
        samples, is_log = resampled[:, number], number < 2
        ends = (found[number], *np.quantile(samples, [0.025, 0.975]))
        middle, low, high = (rounded(10**end, 2) if is_log else f"{end:.1f}" for end in ends)
        shown = "-"
        if not method.lcw and reference != "-":
            shown = reference + "*" * differs(reference, found[number], samples, is_log)
        cells += [f"{middle} ({low} to {high})", shown]
    return row(*cells)
