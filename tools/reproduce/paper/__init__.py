"""The LCW paper: Figures 1 to 4, and the grids of its Section 6 (Fig. 5 and Table 1)."""
