"""The networks: plain modules, built from the shape of an image and the number of classes."""
