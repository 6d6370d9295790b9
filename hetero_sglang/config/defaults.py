"""What flags are where nobody gives them, of those that decide how much fits."""

KEEP_RATIO = 0.5
WINDOW = 64
SINK = 4
DRIFT_THRESHOLD = 0.9
MONITOR_INTERVAL = 4  # of policies that look for drift
