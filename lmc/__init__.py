"""lmc: linear mode connectivity of neural networks, modulo their permutation symmetries."""
