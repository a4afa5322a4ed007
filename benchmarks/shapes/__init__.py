"""The models of the SPZO paper (arXiv 2502.10239) by their configurations: what a step costs there (`benchmarks/paper.py`)."""
