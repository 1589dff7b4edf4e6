"""The command lmc-symmetry: the symmetry of any network, printed, drawn, proved and surveyed."""
