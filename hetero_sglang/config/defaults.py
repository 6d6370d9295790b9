"""What flags are where nobody gives them, of those that decide how much fits."""

KEEP_RATIO = 0.5
WINDOW = 64
SINK = 4
DRIFT_THRESHOLD = 0.9
EXIT_AGREEMENT = 0.99
EXIT_MAX_BATCH = 4
MONITOR_INTERVAL = 4  # of policies that look for drift
