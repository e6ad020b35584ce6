from tools.records import ROOT
from tools.reproduce.paper.grids import GRIDS, PAPER_TABLE_1


def test_the_grids_are_the_papers():
    fig5, table1 = GRIDS["fig5"], GRIDS["table1"]
    pairs = [(n, d, m) for n in table1.networks for d in table1.data for m in table1.methods]
    assert sorted(pairs) == sorted(PAPER_TABLE_1)
    assert {"BN+LCW", "BN+WN", "BN+CWN", "BN+SN", "LCW", "BN", "SL", "WN", "CWN", "SN"} <= set(fig5.methods)
    assert table1.methods.items() <= dict(fig5.methods).items()
    for grid in (fig5, table1):
        for network in grid.networks:
            assert all((ROOT / "configs" / f"{network}_{data}.yaml").exists() for data in grid.data)
