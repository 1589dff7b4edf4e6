"""Learning-rate schedules: what the learning rate is multiplied by at a given moment of the training."""
