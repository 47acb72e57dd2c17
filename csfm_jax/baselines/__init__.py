"""What a model must beat before anyone believes that it has learnt more than heart rate."""
