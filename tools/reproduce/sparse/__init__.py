"""The sparsity paper (Price et al., ICLR 2024): its Table 2 with and without LCW, and networks before training."""
