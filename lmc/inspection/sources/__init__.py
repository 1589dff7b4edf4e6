"""Where networks come from: one module for each prefix of a network's name, each with a function `build`."""
