"""What is looked at beside the path itself: as many options as wanted, each a module."""
