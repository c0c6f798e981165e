"""What scores mean: paired differences, intervals, forgetting, calibration. Pure functions."""
