from tools.records import ROOT
from tools.reproduce.paper.grids import GRIDS, PAPER_TABLE_1


def test_the_grids_are_the_papers():
    fig5, table1 = GRIDS["fig5"], GRIDS["table1"]
    pairs = [(n, d, m) for n in table1.networks for d in table1.data for m in table1.methods]
    assert sorted(pairs) == sorted(PAPER_TABLE_1)
    alone = {"LCW", "SL", "WN", "CWN", "SN"}
    assert set(fig5.methods) == {"plain", "BN", *alone, *(f"BN+{method}" for method in alone), "BN+init"}
    assert set(fig5.methods["BN"]) - set(fig5.methods["BN+init"]) == {"--minibatch_init.granularity=none"}
    assert table1.methods.items() <= dict(fig5.methods).items()
    for grid in (fig5, table1):
        for network in grid.networks:
            assert all((ROOT / "configs" / f"{network}_{data}.yaml").exists() for data in grid.data)
